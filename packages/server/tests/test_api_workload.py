"""Workloads enroll with a JWT of their own issuer: what is taken, what is not, and what it gets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_server.api.models import Trust
from lattice_server.jwks import check_source
from lattice_server.workload import mismatch
from support.issuer import AUDIENCE, Issuer, new_key, public_jwk

SUBJECT = "system:serviceaccount:agents:*"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        yield issuer


def trust(plane: Any, issuer: Issuer, workspace: str = "ws", **body: Any) -> dict[str, Any]:
    plane.manage("POST", "/api/v1/workspaces", {"workspaceId": workspace})
    return dict(
        plane.manage(
            "POST",
            "/api/v1/trusts",
            {
                "workspaceId": workspace,
                "issuer": issuer.url,
                "audience": AUDIENCE,
                "claims": {"sub": SUBJECT},
                **body,
            },
        )
    )


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_service_account_enrolls_without_any_secret_of_this_server(
    plane: Any, gateway: Any, issuer: Issuer
) -> None:
    made = trust(plane, issuer, presets=["sandboxed"], maxTTL="5m")
    assert Trust.model_validate(made).claims == {"sub": SUBJECT}
    bearer = issuer.token()
    one = plane.enrolled(bearer, "code-executor", ttl="5m")
    assert one["workspaceId"] == "ws"
    assert one["peerId"] in gateway.peers
    assert code(plane.enroll(bearer, ttl="6m")) == (403, "ttl_not_permitted")
    wider = plane.enroll(bearer, policyPreset="coordinator", ttl="5m")
    assert code(wider) == (403, "preset_not_permitted")
    # From here on it is an identity like any.
    renewed = plane.call("POST", f"/api/v1/peers/{one['peerId']}/renew", one["enrollmentToken"])
    assert renewed.status_code == 200
    shown = plane.call("GET", f"/api/v1/peers/{one['peerId']}", one["enrollmentToken"]).json()
    assert shown["subject"] == "system:serviceaccount:agents:code-executor"
    [event] = plane.events("enrolled")
    assert (event["data"]["subject"], event["data"]["token"]) == (shown["subject"], made["id"])
    assert bearer not in str(plane.events())


def test_a_trust_says_the_preset_of_its_workloads(plane: Any, gateway: Any, issuer: Issuer) -> None:
    trust(plane, issuer, presets=["coordinator"])
    assert plane.enrolled(issuer.token(), "planner")["policyPreset"] == "coordinator"


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA"])
def test_algorithm_of_the_issuers_key_is_taken(
    plane: Any, gateway: Any, issuer: Issuer, algorithm: str
) -> None:
    issuer.rotate(algorithm)
    trust(plane, issuer)
    plane.enrolled(issuer.token())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"exp": 1_600_000_000}, "expired"),
        ({"exp": None}, "has to have exp"),
        ({"sub": None}, "has to have exp"),
        ({"nbf": 4_000_000_000}, "not valid yet"),
        ({"iat": 4_000_000_000}, "not valid yet"),
        ({"aud": "https://other.example"}, "audience"),
        ({"aud": None}, "has to have exp"),
        ({"aud": []}, "has to have exp"),
        ({"iss": "https://other.example"}, "trusts no such token"),
        ({"iss": None}, "trusts no such token"),
        ({"sub": "system:serviceaccount:payroll:x"}, "claim sub"),
        ({"sub": "x system:serviceaccount:agents:y"}, "claim sub"),
    ],
)
def test_claims_that_are_not_trusted_are_refused(
    plane: Any, gateway: Any, issuer: Issuer, changed: dict[str, Any], told: str
) -> None:
    trust(plane, issuer)
    answer = plane.enroll(issuer.token(**changed))
    assert code(answer) == (401, "invalid_token")
    assert told in answer.json()["detail"]
    assert plane.peers() == []


def forgeries(issuer: Issuer) -> dict[str, str]:
    """Tokens that somebody without the issuer's key can make."""
    head, body, signature = issuer.token().split(".")
    header = {"alg": "ES256", "typ": "JWT", "kid": issuer.kid}
    other = new_key("ES256")
    public = json.dumps(issuer.keys[0]).encode()

    def mac(text: str, key: bytes) -> str:
        return part(hmac.new(key, text.encode(), hashlib.sha256).digest())

    symmetric = f"{part({**header, 'alg': 'HS256'})}.{body}"
    return {
        "unsigned": f"{part({**header, 'alg': 'none'})}.{body}.",
        "unsigned, written otherwise": f"{part({**header, 'alg': 'nOnE'})}.{body}.",
        "signature left out": f"{head}.{body}.",
        "algorithm left out": f"{part({'kid': issuer.kid})}.{body}.{signature}",
        "the public key as a secret": f"{symmetric}.{mac(symmetric, public)}",
        "an empty secret": f"{symmetric}.{mac(symmetric, b'')}",
        "another key under the same id": jwt.encode(
            issuer.claims(), other, algorithm="ES256", headers={"kid": issuer.kid}
        ),
        "a key that it brings along": jwt.encode(
            issuer.claims(),
            other,
            algorithm="ES256",
            headers={"kid": "mine", "jwk": public_jwk(other, "ES256", "mine")},
        ),
        "a key set that it names": jwt.encode(
            issuer.claims(),
            other,
            algorithm="ES256",
            headers={"kid": "mine", "jku": f"{issuer.url}/keys"},
        ),
        "a key id that is a path": jwt.encode(
            issuer.claims(), other, algorithm="ES256", headers={"kid": "../../etc/passwd"}
        ),
        "other claims under the signature": (
            f"{head}.{part({**issuer.claims(), 'sub': 'system:serviceaccount:agents:root'})}"
            f".{signature}"
        ),
        "zeroes as the signature": f"{head}.{body}.{part(bytes(64))}",
        "an extension that has to be understood": jwt.encode(
            issuer.claims(),
            issuer.key,
            algorithm="ES256",
            headers={"kid": issuer.kid, "crit": ["exp"]},
        ),
        "no JSON": f"{part(b'eyJ')}.{body}.{signature}",
        "claims that are a list": f"{head}.{part([1])}.{signature}",
    }


def test_forged_tokens_are_refused(plane: Any, gateway: Any, issuer: Issuer) -> None:
    trust(plane, issuer)
    plane.enrolled(issuer.token())
    for name, token in forgeries(issuer).items():
        answer = plane.enroll(token)
        assert code(answer) == (401, "invalid_token"), name
        assert token not in answer.text
    assert len(plane.peers()) == 1


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_weak_and_foreign_keys_of_a_key_set_are_not_used(
    plane: Any, gateway: Any, issuer: Issuer
) -> None:
    trust(plane, issuer)
    weak = new_key("RS256", 1024)
    secret = {"kty": "oct", "k": part(b"secret" * 8), "kid": "oct"}
    encrypts = new_key("ES256")
    for_encryption = public_jwk(encrypts, "ES256", "enc", use="enc")
    broken = {"kty": "EC", "crv": "P-256", "x": "!", "y": "!", "kid": "broken"}
    issuer.keys += [
        *(public_jwk(weak, "RS256", "weak"), secret, for_encryption, broken),
        {"kty": "XX", "kid": "unknown"},
    ]
    plane.enrolled(issuer.token())
    for token in (
        jwt.encode(issuer.claims(), weak, algorithm="RS256", headers={"kid": "weak"}),
        jwt.encode(issuer.claims(), "secret" * 8, algorithm="HS256", headers={"kid": "oct"}),
        jwt.encode(issuer.claims(), encrypts, algorithm="ES256", headers={"kid": "enc"}),
        issuer.token(headers={"kid": "broken"}),
        issuer.token(headers={"kid": "unknown"}),
    ):
        assert code(plane.enroll(token)) == (401, "invalid_token")


def test_rotated_key_is_found_and_the_former_one_is_not_taken(
    plane: Any, gateway: Any, issuer: Issuer, wait: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lattice_server.jwks.PAUSE_SECONDS", 0.2)
    trust(plane, issuer)
    former = issuer.token()
    plane.enrolled(former)
    issuer.rotate(keep=True)
    wait("the new key", lambda: plane.enroll(issuer.token()).status_code == 201)
    plane.enrolled(former)
    issuer.rotate()
    wait("the third key", lambda: plane.enroll(issuer.token()).status_code == 201)
    assert code(plane.enroll(former)) == (401, "invalid_token")


def test_made_up_key_ids_do_not_flood_the_issuer(plane: Any, gateway: Any, issuer: Issuer) -> None:
    trust(plane, issuer)
    for number in range(20):
        plane.enroll(issuer.token(headers={"kid": f"made-up-{number}"}))
    assert issuer.fetches <= 2
    plane.enrolled(issuer.token())


def test_keys_hold_a_while_when_the_issuer_is_down_and_no_longer(
    plane: Any, gateway: Any, issuer: Issuer, monkeypatch: Any
) -> None:
    trust(plane, issuer)
    issuer.status = 500
    answer = plane.enroll(issuer.token())
    assert code(answer) == (503, "issuer_unavailable")
    assert "retry-after" in answer.headers
    issuer.status = 200
    monkeypatch.setattr("lattice_server.jwks.PAUSE_SECONDS", 0)
    plane.enrolled(issuer.token())
    issuer.status = 500
    monkeypatch.setattr("lattice_server.jwks.FRESH_SECONDS", 0)
    plane.enrolled(issuer.token())
    monkeypatch.setattr("lattice_server.jwks.STALE_SECONDS", 0)
    assert code(plane.enroll(issuer.token())) == (503, "issuer_unavailable")


def test_discovery_document_of_another_issuer_is_refused(
    plane: Any, gateway: Any, issuer: Issuer
) -> None:
    trust(plane, issuer)
    issuer.discovery = {"issuer": "https://other.example"}
    assert code(plane.enroll(issuer.token())) == (503, "issuer_unavailable")


def test_key_set_from_a_file_needs_no_network(
    plane: Any, gateway: Any, issuer: Issuer, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lattice_server.jwks.FRESH_FILE_SECONDS", 0)
    monkeypatch.setattr("lattice_server.jwks.PAUSE_SECONDS", 0)
    file = tmp_path / "key set.json"
    trust(plane, issuer, jwksUri=file.as_uri())
    answer = plane.enroll(issuer.token())
    assert code(answer) == (503, "issuer_unavailable")
    file.write_text(json.dumps({"keys": issuer.keys}))
    former = issuer.token()
    plane.enrolled(former)
    issuer.rotate()
    file.write_text(json.dumps({"keys": issuer.keys}))
    plane.enrolled(issuer.token())
    assert code(plane.enroll(former)) == (401, "invalid_token")
    file.write_text("no JSON")
    plane.enrolled(issuer.token())  # the last keys hold
    assert issuer.fetches == 0


def test_claims_decide_the_workspace(plane: Any, gateway: Any, issuer: Issuer) -> None:
    for name in ("a", "b"):
        trust(plane, issuer, f"ws-{name}", claims={"kubernetes.io/namespace": f"team-{name}"})
    for name in ("a", "b"):
        token = issuer.token(**{"kubernetes.io": {"namespace": f"team-{name}"}})
        assert plane.enrolled(token)["workspaceId"] == f"ws-{name}"
        other = "ws-b" if name == "a" else "ws-a"
        assert code(plane.enroll(token, workspaceId=other)) == (403, "workspace_mismatch")
    assert code(plane.enroll(issuer.token())) == (401, "invalid_token")


def test_token_that_several_workspaces_trust_has_to_say_which(
    plane: Any, gateway: Any, issuer: Issuer
) -> None:
    for name in ("ws-a", "ws-b"):
        trust(plane, issuer, name)
    assert code(plane.enroll(issuer.token())) == (422, "invalid_request")
    for name in ("ws-a", "ws-b"):
        assert plane.enrolled(issuer.token(), workspaceId=name)["workspaceId"] == name


def test_old_token_is_refused_where_the_trust_says_so(
    plane: Any, gateway: Any, issuer: Issuer
) -> None:
    trust(plane, issuer, maxAge="60s")
    plane.enrolled(issuer.token())
    now = issuer.claims()["iat"]
    for iat in (now - 120, None):
        answer = plane.enroll(issuer.token(iat=iat))
        assert code(answer) == (401, "invalid_token")
        assert "too long ago" in answer.json()["detail"]


def test_jwt_enrolls_and_does_nothing_else(plane: Any, gateway: Any, issuer: Issuer) -> None:
    trust(plane, issuer)
    one = plane.enrolled(issuer.token())
    path = f"/api/v1/peers/{one['peerId']}"
    for method, where in (
        ("GET", path),
        ("DELETE", path),
        ("POST", f"{path}/renew"),
        ("GET", "/api/v1/peers"),
        ("GET", "/api/v1/events"),
        ("GET", "/api/v1/trusts"),
        ("POST", "/api/v1/services/x/connect"),
    ):
        assert code(plane.call(method, where, issuer.token())) == (401, "invalid_token")


def test_limits_of_a_trust_are_those_of_a_token(plane: Any, gateway: Any, issuer: Issuer) -> None:
    made = trust(plane, issuer, uses=2, agentTypes=["code-*"], delegationDepth=0)
    assert code(plane.enroll(issuer.token(), "payroll")) == (403, "agent_type_not_permitted")
    one = plane.enrolled(issuer.token(), "code-1")
    path = f"/api/v1/agents/{one['peerId']}/delegate"
    answer = plane.call("POST", path, one["enrollmentToken"], json={"subAgentName": "x"})
    assert code(answer) == (403, "delegation_not_permitted")
    plane.enrolled(issuer.token(), "code-2")
    assert code(plane.enroll(issuer.token(), "code-3")) == (401, "token_used_up")
    far = trust(plane, issuer, "ws-far", sources=["10.0.0.0/8"])
    answer = plane.enroll(issuer.token(), workspaceId="ws-far")
    assert code(answer) == (403, "source_not_permitted")
    for one in (made, far):
        plane.manage("DELETE", f"/api/v1/trusts/{one['id']}?agents=true")
    assert gateway.peers == {}
    assert code(plane.enroll(issuer.token(), "code-4")) == (401, "invalid_token")


def test_allow_list_of_a_workload_is_held_to_its_trust(
    plane: Any, gateway: Any, issuer: Issuer
) -> None:
    permits = [{"to": "10.96.0.0/16", "port": 443}]
    made = trust(plane, issuer, allow=permits)
    assert made["allow"] == permits
    payroll = plane.service("ws", "payroll", 443, designated=False)

    def enroll(port: int) -> Any:
        allow = [{"to": payroll["address"], "port": port}]
        return plane.enroll(issuer.token(), policyPreset="isolated", allow=allow)

    assert [service["name"] for service in enroll(443).json()["services"]] == ["payroll"]
    assert code(enroll(80)) == (403, "destination_not_permitted")


def test_workload_takes_no_identity_of_another_subject(
    plane: Any, gateway: Any, issuer: Issuer, key: Callable[[], str]
) -> None:
    trust(plane, issuer)
    public = key()
    one = plane.enrolled(issuer.token(), publicKey=public)
    assert plane.enrolled(issuer.token(), publicKey=public)["peerId"] == one["peerId"]
    thief = issuer.token(sub="system:serviceaccount:agents:thief")
    assert code(plane.enroll(thief, publicKey=public)) == (422, "invalid_public_key")


def test_trusts_are_listed_apart_from_tokens(plane: Any, issuer: Issuer) -> None:
    made = trust(plane, issuer)
    assert plane.manage("GET", "/api/v1/trusts?workspaceId=ws")["items"] == [made]
    assert made["id"] not in plane.call("GET", "/api/v1/tokens", plane.admin).text
    answer = plane.call("POST", f"/api/v1/tokens/{made['id']}/rotate", plane.admin)
    assert code(answer) == (404, "token_not_found")
    assert code(plane.call("DELETE", "/api/v1/trusts/none", plane.admin)) == (
        *(404, "token_not_found"),
    )
    assert plane.call("GET", "/api/v1/trusts", plane.workspace("ws")).status_code == 403
    kinds = [event["type"] for event in plane.events()]
    assert "trust.created" in kinds
    assert not {"token.rotated", "trust.revoked"} & set(kinds)


@pytest.mark.parametrize(
    "body",
    [
        {"claims": {}},
        {"claims": {"sub": ""}},
        {"claims": {"": "x"}},
        {"claims": None},
        {"audience": ""},
        {"issuer": ""},
        {"issuer": "not a url"},
        {"jwksUri": "http://keys.example/keys"},
        {"jwksUri": "ftp://keys.example/keys"},
        {"jwksUri": "file://elsewhere/keys"},
        {"jwksUri": "https://user:secret@keys.example/"},
        {"presets": ["root"]},
        {"maxAge": "0s"},
        {"kind": "admin"},
        {"id": "trust-mine"},
    ],
)
def test_trust_that_makes_no_sense_is_refused(
    plane: Any, issuer: Issuer, body: dict[str, Any]
) -> None:
    plane.workspace("ws")
    good = {"workspaceId": "ws", "issuer": issuer.url, "audience": "x", "claims": {"sub": "x"}}
    answer = plane.call("POST", "/api/v1/trusts", plane.admin, json={**good, **body})
    assert code(answer) == (422, "invalid_request")
    assert "secret" not in answer.text


def test_keys_come_from_where_it_is_safe() -> None:
    for good in ("https://a.example/keys", "http://127.0.0.1:1/", "http://[::1]/k", "file:///k"):
        assert check_source(good) == good
    for bad in ("http://10.0.0.1/keys", "http://localhost.evil.example/", "file:keys", "keys"):
        with pytest.raises(ValueError, match="https"):
            check_source(bad)


def test_claim_has_several_values_or_is_inside_of_others() -> None:
    claims = {
        "groups": ["a", "b"],
        "verified": True,
        "run": 7,
        "kubernetes.io": {"serviceaccount": {"name": "x"}, "pod": None},
        "https://example.com/role": "admin",
    }
    for name, pattern, fits in (
        ("groups", "b", True),
        ("groups", "c", False),
        ("verified", "true", True),
        ("run", "7", True),
        ("kubernetes.io/serviceaccount/name", "x", True),
        ("kubernetes.io/serviceaccount", "*", False),
        ("kubernetes.io/pod", "*", False),
        ("kubernetes.io/serviceaccount/name/x", "*", False),
        ("https://example.com/role", "admin", True),
        ("missing", "*", False),
    ):
        assert (mismatch(claims, {"claims": {name: pattern}}) is None) is fits, name


@given(st.dictionaries(st.sampled_from("abc"), st.text("xy", max_size=3), min_size=1), st.data())
def test_every_claim_has_to_fit(wanted: dict[str, str], data: st.DataObject) -> None:
    assert mismatch(wanted, {"claims": wanted}) is None
    missing = data.draw(st.sampled_from(sorted(wanted)))
    for claims in (
        {k: v for k, v in wanted.items() if k != missing},
        {**wanted, missing: wanted[missing] + "z"},
    ):
        assert mismatch(claims, {"claims": wanted}) is not None
