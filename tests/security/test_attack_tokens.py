"""Tokens where they do not belong: every kind on every route, replayed, doubled, changed."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.issuer import AUDIENCE, Issuer
from support.tenants import BODIES, Api, Tenant, new_key, raw

ENROLLS = {"workspace", "delegation", "jwt"}
OF_A_PEER = {"enrollment", "workspace", "admin"}
# Which kinds of token a route takes; those that are not named need none.
PERMITTED: dict[str, set[str]] = {
    "POST /api/v1/agent-enroll": ENROLLS,
    "POST /api/v1/peers/{peer_id}/renew": {"enrollment"},
    "POST /api/v1/peers/{peer_id}/names": {"enrollment"},
    # An egress connector's alone, which none of these is.
    "POST /api/v1/peers/{peer_id}/routes": set(),
    "POST /api/v1/peers/{peer_id}/refusals": set(),
    "POST /api/v1/agents/{peer_id}/delegate": {"enrollment"},
    "GET /api/v1/peers/{peer_id}": OF_A_PEER,
    "DELETE /api/v1/peers/{peer_id}": OF_A_PEER,
    "GET /api/v1/peers/{peer_id}/services": OF_A_PEER,
    "GET /api/v1/peers": {"workspace", "admin"},
    "GET /apis/alattice.io/v1alpha1/namespaces/{workspace}/latticepeers": {"workspace", "admin"},
    "GET /apis/alattice.io/v1alpha1/namespaces/{workspace}/latticepeers/{peer_id}": OF_A_PEER,
    "POST /api/v1/services/{name}/connect": {"service", "admin"},
    "GET /api/v1/events": {"observer", "admin"},
    "GET /api/v1/denials": {"observer", "admin"},
    "GET /metrics": {"observer", "admin", "nobody"},
    "GET /healthz": {"everybody"},
    "GET /readyz": {"everybody"},
}
MANAGEMENT = {"admin"}


@pytest.fixture(scope="module")
def bearers(tenants: tuple[Api, Tenant, Tenant]) -> Iterator[dict[str, str]]:
    """A good token of each kind."""
    api, ours, _ = tenants
    with Issuer() as issuer:
        trust = {"workspaceId": ours.workspace, "issuer": issuer.url, "audience": AUDIENCE}
        api.manage("POST", "/api/v1/trusts", {**trust, "claims": {"sub": "*"}})
        yield {
            "admin": api.fabric.admin_token,
            "workspace": ours.token["token"],
            "service": ours.service_token["token"],
            "gateway": str(api.token(kind="gateway")["token"]),
            "observer": str(api.token(kind="observer")["token"]),
            "enrollment": ours.agent["enrollmentToken"],
            "delegation": ours.delegation,
            "jwt": issuer.token(),
        }


def test_every_kind_of_token_does_what_it_is_for_and_nothing_else(
    api: Api, ours: Tenant, bearers: dict[str, str]
) -> None:
    """Each route, with each kind, on things that are there: only the kind decides."""
    paths = api.http.get("/openapi.json").json()["paths"]
    routes = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    assert set(PERMITTED) <= set(routes)
    # What uses something up comes last, and is tried on nothing by those who may.
    for route in sorted(routes, key=lambda one: ("enroll" in one, one.startswith("DELETE"))):
        method, path = route.split(" ")
        permitted = PERMITTED.get(route, MANAGEMENT)
        if permitted == {"everybody"}:
            continue
        for kind, token in bearers.items():
            may = kind in permitted
            ends = may and (method == "DELETE" or path.endswith("/rotate"))
            filled = path.format(
                peer_id="peer-aaaaaaaaaaaaaaaa" if ends else ours.agent["peerId"],
                name="none" if ends else ours.service,
                workspace=ours.workspace,
                workspace_id=ours.workspace,
                token_id="none" if ends else ours.token["id"],
                trust_id="none" if ends else ours.trust["id"],
            )
            answer = api.call(method, filled, token, json=BODIES.get(route))
            refused = (401, "invalid_token") if kind == "jwt" else (403, "forbidden")
            got = (answer.status_code, answer.json()["code"]) if answer.is_error else (200, "")
            assert (got == refused) is not may, (route, kind, answer.status_code, answer.text)
    assert ours.agent["peerId"] in api.gateway_peers()


@pytest.mark.parametrize("kind", ["workspace", "delegation", "rotated"])
def test_one_use_token_that_is_replayed_at_once_enrolls_once(
    api: Api, ours: Tenant, kind: str
) -> None:
    name = "replayed"
    if kind == "delegation":
        path = f"/api/v1/agents/{ours.agent['peerId']}/delegate"
        answer = api.call("POST", path, ours.agent["enrollmentToken"], json={"subAgentName": name})
        tokens = [answer.json()["enrollmentToken"]]
    else:
        made = api.token(kind="workspace", workspaceId=ours.workspace, uses=1)
        tokens = [made["token"]]
        if kind == "rotated":
            rotate = f"/api/v1/tokens/{made['id']}/rotate"
            tokens.append(api.manage("POST", rotate, {"overlap": "1h"})["token"])
    before = set(api.peers())
    bodies = [{"publicKey": new_key()} for _ in range(24)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(
                lambda one: api.enroll(tokens[one[0] % len(tokens)], name, **one[1]),
                enumerate(bodies),
            )
        )
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 23
    made_peers = set(api.peers()) - before
    assert len(made_peers) == 1
    assert made_peers <= api.gateway_peers()
    api.manage("DELETE", f"/api/v1/peers/{made_peers.pop()}")


def test_used_token_with_the_key_it_was_used_with_gives_nothing_away_later(
    api: Api, ours: Tenant
) -> None:
    """Whoever finds a spent token and knows the public key does not get the identity's token."""
    token = api.token(kind="workspace", workspaceId=ours.workspace, uses=1)["token"]
    key = new_key()
    one = api.enroll(token, "once", publicKey=key).json()
    path = f"/api/v1/peers/{one['peerId']}"
    assert api.call("POST", f"{path}/renew", one["enrollmentToken"]).status_code == 200
    answer = api.enroll(token, "once", publicKey=key)
    assert (answer.status_code, answer.json()["code"]) == (401, "token_used_up")
    assert api.call("DELETE", path, one["enrollmentToken"]).status_code == 204


def variations(token: str) -> list[str]:
    """Headers that are nearly right."""
    basic = base64.b64encode(f"admin:{token}".encode()).decode()
    return [
        token,
        f"Basic {basic}",
        f"Bearer {token[:-1]}",
        f"Bearer {token}x",
        f"Bearer {token}=",
        f"Bearer {token},{token}",
        f"Bearer {token} {token}",
        f"Bearer {token.upper()}",
        f"Bearer {token.swapcase()}",
        f"Bearer {token[:4]}",
        "Bearer lt-a",
        "Bearer lt-a%",
        "Bearer ' OR 1=1 --",
        "Bearer lt-a' OR '1'='1",
        "Bearer null",
        "Bearer undefined",
        "Bearer",
        f"Token {token}",
        f"Bearer:{token}",
        f"Bearer lt-{'w' + token[4:]}",
    ]


def test_token_that_is_nearly_right_is_wrong(api: Api) -> None:
    for header in variations(api.fabric.admin_token):
        answer = api.call("GET", "/api/v1/tokens", headers={"Authorization": header})
        assert answer.status_code == 401, header
        assert api.fabric.admin_token[5:] not in answer.text
    for header in (f"bearer {api.fabric.admin_token}", f"BEARER  {api.fabric.admin_token}"):
        # RFC 9110: the scheme's case does not matter.
        answer = api.call("GET", "/api/v1/tokens", headers={"Authorization": header})
        assert answer.status_code == 200, header


def test_two_tokens_are_none(api: Api, ours: Tenant) -> None:
    """What is in front may look at one of two headers, and the server at the other."""
    good, other = api.fabric.admin_token.encode(), ours.token["token"].encode()
    for first, second in ((good, other), (other, good), (good, good)):
        answer = raw(
            api,
            b"GET /api/v1/tokens HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Authorization: Bearer "
            + first
            + b"\r\nAuthorization: Bearer "
            + second
            + b"\r\n\r\n",
        )
        assert answer.startswith(b"HTTP/1.1 401"), answer[:200]


def test_token_in_the_query_or_the_body_is_not_looked_at(api: Api) -> None:
    token = api.fabric.admin_token
    for path in (
        f"/api/v1/tokens?token={token}",
        f"/api/v1/tokens?access_token={token}",
        f"/api/v1/tokens?authorization=Bearer%20{token}",
        f"/api/v1/tokens?Authorization=Bearer+{token}",
    ):
        answer = api.call("GET", path)
        assert (answer.status_code, answer.json()["code"]) == (401, "missing_token")
    for options in (
        {"headers": {"Cookie": f"Authorization=Bearer {token}; token={token}"}},
        {"headers": {"X-Auth-Token": token, "Proxy-Authorization": f"Bearer {token}"}},
        {"auth": ("admin", token)},
    ):
        answer = api.call("GET", "/api/v1/tokens", **options)
        assert answer.status_code == 401
