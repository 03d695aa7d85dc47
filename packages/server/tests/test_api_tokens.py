"""Tokens with limits: who may use them, from where, how often; a new text, and their end."""

from __future__ import annotations

import fnmatch
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_server.access import within_networks
from lattice_server.api.models import Token
from lattice_server.terms import matches


def made(plane: Any, **body: Any) -> dict[str, Any]:
    plane.manage("POST", "/api/v1/workspaces", {"workspaceId": "ws"})
    kind = {"kind": "workspace", "workspaceId": "ws"} if "kind" not in body else {}
    return dict(plane.manage("POST", "/api/v1/tokens", {**kind, **body}))


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_token_of_an_agent_type_enrolls_that_type_alone(plane: Any, gateway: Any) -> None:
    token = made(plane, agentTypes=["code-*", "searcher"])["token"]
    for name, kind in (("any", "code-executor"), ("any", "searcher"), ("code-1", None)):
        plane.enrolled(token, name, **({"agentType": kind} if kind else {}))
    for name, kind in (("any", "payroll"), ("payroll", None), ("code-1", "searcher-2")):
        answer = plane.enroll(token, name, **({"agentType": kind} if kind else {}))
        assert code(answer) == (403, "agent_type_not_permitted")
        assert answer.json()["errors"][0]["field"] == "agentType"


@given(st.text("ab*", max_size=7), st.text("ab", max_size=7))
def test_pattern_matches_as_shells_do(pattern: str, text: str) -> None:
    assert matches(text, pattern) == fnmatch.fnmatchcase(text, pattern)


def test_token_is_good_from_its_networks_alone(plane: Any, gateway: Any) -> None:
    far = made(plane, sources=["10.0.0.0/8", "2001:db8::/32"])
    assert Token.model_validate(far).sources == ["10.0.0.0/8", "2001:db8::/32"]
    near = made(plane, sources=["127.0.0.0/8"])["token"]
    answer = plane.enroll(far["token"])
    assert code(answer) == (403, "source_not_permitted")
    assert "10.0.0.0" not in answer.text
    # What a client says of itself is no source.
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        value = "for=10.1.1.1" if header == "Forwarded" else "10.1.1.1"
        forged = plane.call(
            "POST",
            "/api/v1/agent-enroll",
            far["token"],
            json={"agentName": "a"},
            headers={header: value},
        )
        assert code(forged) == (403, "source_not_permitted")
    plane.enrolled(near)
    admin = made(plane, kind="admin", sources=["192.0.2.7"])["token"]
    assert code(plane.call("GET", "/api/v1/tokens", admin)) == (403, "source_not_permitted")


def test_trusted_proxy_says_where_a_request_is_from(make_control_plane: Any) -> None:
    with make_control_plane(trusted_proxies=["127.0.0.0/8"]) as plane:
        plane.gateway()
        token = made(plane, sources=["10.0.0.0/8"])["token"]

        def enroll(forwarded: str) -> Any:
            return plane.call(
                "POST",
                "/api/v1/agent-enroll",
                token,
                json={"agentName": "a"},
                headers={"X-Forwarded-For": forwarded},
            )

        assert enroll("10.1.1.1").status_code == 201
        assert code(enroll("192.0.2.1")) == (403, "source_not_permitted")
        # What comes before the last hop was written by the client.
        assert code(enroll("10.1.1.1, 192.0.2.1")) == (403, "source_not_permitted")
        assert code(enroll("not an address")) == (403, "source_not_permitted")


@pytest.mark.parametrize(
    ("address", "network", "inside"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),
        ("2001:db8::1", "2001:db8::/32", True),
        ("2001:db8::1", "0.0.0.0/0", False),
        ("10.1.2.3", "::/0", False),
        ("", "0.0.0.0/0", False),
        ("10.1.2.3%eth0", "0.0.0.0/0", False),
    ],
)
def test_address_is_of_a_network(address: str, network: str, inside: bool) -> None:
    assert within_networks(address, [network]) is inside


@pytest.mark.parametrize(
    "body",
    [
        {"sources": []},
        {"sources": ["10.0.0.0/33"]},
        {"sources": ["everywhere"]},
        {"agentTypes": []},
        {"agentTypes": ["a b"]},
        {"delegationDepth": -1},
        {"delegationDepth": True},
        {"kind": "gateway", "agentTypes": ["x"]},
        {"kind": "admin", "delegationDepth": 1},
    ],
)
def test_limit_that_makes_no_sense_is_refused(plane: Any, body: dict[str, Any]) -> None:
    plane.workspace("ws")
    kind = {"kind": "workspace", "workspaceId": "ws"} if "kind" not in body else {}
    answer = plane.call("POST", "/api/v1/tokens", plane.admin, json={**kind, **body})
    assert code(answer) == (422, "invalid_request")


def test_token_says_how_deep_its_agents_may_delegate(plane: Any, gateway: Any) -> None:
    for depth in (0, 1):
        parent = plane.enrolled(made(plane, delegationDepth=depth)["token"])
        path = f"/api/v1/agents/{parent['peerId']}/delegate"
        answer = plane.call("POST", path, parent["enrollmentToken"], json={"subAgentName": "x"})
        assert answer.status_code == (201 if depth else 403)


def test_rotated_token_has_a_new_text_and_the_same_limits(plane: Any, gateway: Any) -> None:
    token = made(plane, uses=3, maxTTL="1m")
    one = plane.enrolled(token["token"], ttl="1m")
    path = f"/api/v1/tokens/{token['id']}/rotate"
    rotated = plane.call("POST", path, plane.admin)
    assert rotated.headers["cache-control"] == "no-store"
    fresh = rotated.json()["token"]
    assert (rotated.json()["id"], rotated.json()["used"]) == (token["id"], 1)
    assert code(plane.enroll(token["token"], ttl="1m")) == (401, "invalid_token")
    plane.enrolled(fresh, ttl="1m")
    assert code(plane.enroll(fresh, ttl="2m")) == (403, "ttl_not_permitted")
    plane.enrolled(fresh, ttl="1m")
    assert code(plane.enroll(fresh, ttl="1m")) == (401, "token_used_up")
    # What it enrolled before lives on.
    renewed = plane.call("POST", f"/api/v1/peers/{one['peerId']}/renew", one["enrollmentToken"])
    assert renewed.status_code == 200
    [event] = plane.events("token.rotated")
    assert event["data"]["token"] == token["id"]
    assert fresh not in str(plane.events())


def test_former_text_holds_as_long_as_was_said(plane: Any, gateway: Any, wait: Any) -> None:
    token = made(plane)
    path = f"/api/v1/tokens/{token['id']}/rotate"
    fresh = plane.call("POST", path, plane.admin, json={"overlap": "8s"}).json()
    assert Token.model_validate(fresh).former_holds_until is not None
    plane.enrolled(token["token"])
    plane.enrolled(fresh["token"])
    look = ("GET", "/api/v1/peers", token["token"])
    wait("the end", lambda: plane.call(*look).status_code == 401)
    assert code(plane.enroll(token["token"])) == (401, "invalid_token")
    plane.enrolled(fresh["token"])
    # Rotated twice, the first text is void at once: there is one former text.
    second = plane.call("POST", path, plane.admin, json={"overlap": "1h"}).json()
    third = plane.call("POST", path, plane.admin, json={"overlap": "1h"}).json()
    assert plane.enroll(fresh["token"]).status_code == 401
    plane.enrolled(second["token"])
    plane.manage("DELETE", f"/api/v1/tokens/{token['id']}")
    for text in (second["token"], third["token"]):
        assert code(plane.enroll(text)) == (401, "token_revoked")
    assert code(plane.call("POST", path, plane.admin)) == (409, "conflict")


def test_overlap_is_bounded(plane: Any) -> None:
    path = f"/api/v1/tokens/{made(plane)['id']}/rotate"
    for overlap in ("169h", "-1s", "x", 5):
        answer = plane.call("POST", path, plane.admin, json={"overlap": overlap})
        assert code(answer) == (422, "invalid_request")
    missing = plane.call("POST", "/api/v1/tokens/token-none/rotate", plane.admin)
    assert code(missing) == (404, "token_not_found")
    assert plane.call("POST", path, plane.workspace("ws")).status_code == 403


def test_rotation_of_the_admin_token_locks_nobody_out(plane: Any) -> None:
    [admin] = plane.manage("GET", "/api/v1/tokens")["items"]
    fresh = plane.manage("POST", f"/api/v1/tokens/{admin['id']}/rotate")["token"]
    assert plane.call("GET", "/api/v1/tokens", plane.admin).status_code == 401
    assert plane.call("GET", "/api/v1/tokens", fresh).status_code == 200


@pytest.mark.parametrize("agents", [False, True])
def test_token_is_revoked_with_or_without_its_agents(
    plane: Any, gateway: Any, agents: bool
) -> None:
    token = made(plane)
    other = plane.enrolled(made(plane)["token"], "other")
    own = [plane.enrolled(token["token"], f"agent-{n}") for n in range(2)]
    path = f"/api/v1/agents/{own[0]['peerId']}/delegate"
    delegated = plane.call(
        "POST", path, own[0]["enrollmentToken"], json={"subAgentName": "helper"}
    ).json()
    own.append(plane.enrolled(delegated["enrollmentToken"], "helper"))
    plane.manage("DELETE", f"/api/v1/tokens/{token['id']}?agents={str(agents).lower()}")
    assert code(plane.enroll(token["token"])) == (401, "token_revoked")
    left = {other["peerId"]} if agents else {one["peerId"] for one in [*own, other]}
    assert set(gateway.peers) == left
    assert {peer["peerId"] for peer in plane.peers()} == left
    if not agents:
        # They can still be ended, though the token is revoked already.
        plane.manage("DELETE", f"/api/v1/tokens/{token['id']}?agents=true")
        assert set(gateway.peers) == {other["peerId"]}
    reasons = {(e["data"]["reason"]) for e in plane.events("revoked")}
    assert reasons == {"token", "parent"}


def test_enrollments_and_revocation_at_once_leave_nobody(plane: Any, gateway: Any) -> None:
    for _ in range(5):
        token = made(plane)
        with ThreadPoolExecutor(9) as pool:
            answers = [pool.submit(plane.enroll, token["token"]) for _ in range(8)]
            path = f"/api/v1/tokens/{token['id']}?agents=true"
            pool.submit(plane.manage, "DELETE", path).result()
        assert {answer.result().status_code for answer in answers} <= {201, 401}
        assert plane.peers() == []
        assert gateway.peers == {}


def test_uses_are_counted_exactly_under_concurrency(plane: Any, gateway: Any) -> None:
    token = made(plane, uses=5)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: plane.enroll(token["token"]), range(32)))
    assert sorted(answer.status_code for answer in answers) == [201] * 5 + [401] * 27
    assert len(plane.peers()) == 5


def test_the_only_preset_that_a_token_names_need_not_be_said(plane: Any, gateway: Any) -> None:
    plane.workspace("ws")

    def token(*presets: str, **limits: Any) -> str:
        return str(plane.token(kind="workspace", workspaceId="ws", presets=presets, **limits))

    assert plane.enrolled(token("coordinator"))["policyPreset"] == "coordinator"
    assert plane.enrolled(token("coordinator"), policyPreset=None)["policyPreset"] == "coordinator"
    path = "/api/v1/workspaces/ws/policy"
    plane.manage("PUT", path, {"presets": {"auditor": {"egress": ["services"]}}})
    assert plane.enrolled(token("auditor"))["policyPreset"] == "auditor"
    with_list = token("auditor", allowIsolated=True)
    assert plane.enrolled(with_list)["policyPreset"] == "auditor"
    # It is a default: what is said is taken as it is said, and of several none is chosen.
    for refused in (
        plane.enroll(token("coordinator"), policyPreset="sandboxed"),
        plane.enroll(token("coordinator", "auditor")),
    ):
        assert (refused.status_code, refused.json()["code"]) == (403, "preset_not_permitted")
    assert plane.enrolled(token("coordinator", "sandboxed"))["policyPreset"] == "sandboxed"
