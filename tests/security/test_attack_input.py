"""Fields that nobody offered, numbers beyond their range, paths that mean two things."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from support.tenants import BODIES, Api, Tenant, new_key, raw

# Fields of records and of answers that a client would like to decide itself.
WANTED = {
    "id": "peer-mine",
    "peerId": "peer-mine",
    "address": "10.96.0.1",
    "overlayIP": "10.96.0.1/32",
    "expiresAt": "2999-01-01T00:00:00Z",
    "maxExpiresAt": "2999-01-01T00:00:00Z",
    "expires_at": 10**15,
    "enrollmentToken": "lt-e" + "x" * 43,
    "token": "lt-a" + "x" * 43,
    "tokenHash": "0" * 64,
    "hash": "0" * 64,
    "state": "active",
    "version": 99,
    "renewals": -1,
    "used": -1,
    "revokedAt": None,
    "parentRef": None,
    "parentId": "peer-mine",
    "rootId": "peer-mine",
    "depth": -5,
    "subject": "root",
    "grants": [{"to": "10.96.0.1", "protocol": "any", "port": 0}],
    "isAdmin": True,
    "__proto__": {"admin": True},
    "constructor": "x",
}


def test_fields_that_nobody_offered_are_refused_not_ignored(api: Api, ours: Tenant) -> None:
    paths = api.http.get("/openapi.json").json()["paths"]
    before = (len(api.peers()), len(api.manage("GET", "/api/v1/tokens?limit=1000")["items"]))
    bearer = {
        "POST /api/v1/agent-enroll": ours.token["token"],
        "POST /api/v1/services/{name}/connect": ours.service_token["token"],
    }
    tried = 0
    for path, methods in paths.items():
        for method in methods:
            route = f"{method.upper()} {path}"
            if "requestBody" not in methods[method]:
                continue
            filled = path.format(
                peer_id=ours.agent["peerId"],
                name=ours.service,
                workspace_id=ours.workspace,
                token_id=ours.token["id"],
            )
            of_a_peer = "{peer_id}" in path
            token = ours.agent["enrollmentToken"] if of_a_peer else api.fabric.admin_token
            for field, value in WANTED.items():
                body = {**BODIES.get(route, {}), field: value}
                answer = api.call(method, filled, bearer.get(route, token), json=body)
                assert answer.status_code == 422, (route, field, answer.text)
                tried += 1
    assert tried >= 10 * len(WANTED)
    assert before == (
        len(api.peers()),
        len(api.manage("GET", "/api/v1/tokens?limit=1000")["items"]),
    )


def test_field_that_is_sent_twice_is_one_of_the_two_and_checked(api: Api, ours: Tenant) -> None:
    """JSON leaves it open which of two counts: whichever it is, it is held to the token."""
    token = api.token(kind="workspace", workspaceId=ours.workspace, presets=["sandboxed"])["token"]
    for body in (
        b'{"agentName": "a", "policyPreset": "sandboxed", "policyPreset": "coordinator"}',
        b'{"agentName": "a", "policyPreset": "coordinator", "policyPreset": "sandboxed"}',
    ):
        answer = api.call(
            *("POST", "/api/v1/agent-enroll", token),
            content=body,
            headers={"Content-Type": "application/json"},
        )
        if answer.status_code == 201:
            assert answer.json()["policyPreset"] == "sandboxed"
            api.manage("DELETE", f"/api/v1/peers/{answer.json()['peerId']}")
        else:
            assert answer.json()["code"] == "preset_not_permitted"


TTLS = [
    *("0s", "-1s", "0.0001s", "1ns", "999ms", "+1h", " 1h", "1h ", "1h\n", "1 h", "h", "1", "1H"),
    *("1e9h", "infh", "NaNs", "0x10s", "1_000s", "１h", "1h" * 500, "9" * 400 + "h"),
    *("2562047h47m16.854775807s", "2562047h47m16.854775808s", "106751d", "P1D", "PT1H"),
    *(1, 1.5, True, [], {}, ["1h"], {"seconds": 1}, -(2**63), 2**63, 1e308),
]


@pytest.mark.parametrize("ttl", TTLS, ids=lambda ttl: repr(ttl)[:20])
def test_life_that_is_none_is_refused(api: Api, ours: Tenant, ttl: Any) -> None:
    bounded = api.token(kind="workspace", workspaceId=ours.workspace, maxTTL="1h")["token"]
    answer = api.enroll(bounded, "a", ttl=ttl, publicKey=new_key())
    assert answer.status_code in (403, 422), answer.text
    assert answer.json()["code"] in ("invalid_ttl", "ttl_not_permitted")
    path = f"/api/v1/peers/{ours.agent['peerId']}/renew"
    before = api.peers()[ours.agent["peerId"]]["expiresAt"]
    answer = api.call("POST", path, ours.agent["enrollmentToken"], json={"ttl": ttl})
    assert answer.status_code in (403, 422), answer.text
    assert api.peers()[ours.agent["peerId"]]["expiresAt"] == before


def test_longest_lives_add_up_without_overflow(api: Api, ours: Tenant) -> None:
    token = api.token(kind="workspace", workspaceId=ours.workspace, maxLifetime="87600h")["token"]
    one = api.enrolled(token, ttl="87600h")
    assert one["expiresAt"] <= one["maxExpiresAt"]
    years = datetime.fromisoformat(one["expiresAt"]).year - datetime.now().year
    assert years in (9, 10)
    path = f"/api/v1/peers/{one['peerId']}"
    answer = api.call("POST", f"{path}/renew", one["enrollmentToken"], json={"ttl": "87600h"})
    assert answer.json()["expiresAt"] <= one["maxExpiresAt"]
    assert one["peerId"] in api.gateway_peers()
    assert api.call("DELETE", path, one["enrollmentToken"]).status_code == 204


INTEGERS: list[Any] = [
    *(-1, -(2**31), -(2**63), 2**31, 2**63, 2**64, 2**200, 1.5, 1e308, "1", "0x1", "1e3", True),
    *(None, [], {}, "NaN", "Infinity", " 1", "1;DROP TABLE peers"),
]


@pytest.mark.parametrize("value", INTEGERS, ids=lambda value: repr(value)[:20])
def test_number_beyond_its_range_is_refused(api: Api, ours: Tenant, value: Any) -> None:
    workspace = {"kind": "workspace", "workspaceId": ours.workspace}
    service = {"name": "numbers", "workspaceId": ours.workspace}
    for path, body in (
        ("/api/v1/tokens", {**workspace, "uses": value}),
        ("/api/v1/tokens", {**workspace, "delegationDepth": value}),
        ("/api/v1/services", {**service, "ports": [{"port": value}]}),
        ("/api/v1/services", {**service, "ports": value}),
    ):
        answer = api.call("POST", path, api.fabric.admin_token, json=body)
        fits = path.endswith("tokens") and (value is None or value == 2**31)
        assert answer.status_code == 422 or fits, (path, body, answer.text)
    for path in ("/api/v1/peers", "/api/v1/events", "/api/v1/tokens", "/api/v1/denials"):
        for name in ("limit", "cursor", "after"):
            answer = api.call("GET", path, api.fabric.admin_token, params={name: str(value)})
            assert answer.status_code in (200, 422), (path, name, answer.text)


def test_paths_that_mean_two_things_lead_nowhere(api: Api, ours: Tenant) -> None:
    """Without a token, and with one that may not: nothing of management comes out."""
    peer = ours.agent["peerId"]
    targets = [
        *("/api/v1/peers/../tokens", "/api/v1/peers/%2e%2e/tokens", "/api/v1/peers/..%2ftokens"),
        *("/api/v1//tokens", "//api/v1/tokens", "/./api/v1/tokens", "/api/v1/tokens/"),
        *("/API/V1/TOKENS", "/api/v1/tokens;x=1", "/api/v1/tokens%00", "/api/v1/tokens%20"),
        *("/api/v1/tokens%2f", "/api/v1/tokens#", "/api/v1/tokens?", "/api/v1/tokens%3f"),
        *("/healthz/../api/v1/tokens", "/healthz/..%2fapi/v1/tokens", "/healthz;/api/v1/tokens"),
        *("http://x/api/v1/tokens", "http://x@y/api/v1/tokens", "/api/v1/%74okens"),
        *(f"/api/v1/peers/{peer}%2frenew", f"/api/v1/peers/{peer}/../../tokens"),
        *("/api/v1/peers/%c0%ae%c0%ae/tokens", "/api/v1/peers/%ff", "/api/v1/peers/%"),
        *("/api/v1/peers/" + "a" * 5000, "/api/v1/peers/" + "%61" * 2000, "*", "/%0d%0aX: y"),
    ]
    for token in (None, ours.token["token"], ours.agent["enrollmentToken"]):
        bearer = f"Authorization: Bearer {token}\r\n" if token else ""
        for target in targets:
            request = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{bearer}\r\n"
            answer = raw(api, request.encode())
            assert answer, target
            status = int(answer.split(b" ", 2)[1])
            assert status in (400, 401, 403, 404, 405, 422), (target, answer[:200])
            assert ours.token["id"].encode() not in answer
            assert b"X: y" not in answer.partition(b"\r\n\r\n")[0]


def test_headers_that_ask_for_another_route_are_not_heard(api: Api, ours: Tenant) -> None:
    path = f"/api/v1/peers/{ours.agent['peerId']}"
    for headers in (
        {"X-HTTP-Method-Override": "DELETE"},
        {"X-HTTP-Method": "DELETE"},
        {"X-Method-Override": "DELETE"},
        {"X-Original-URL": "/api/v1/tokens"},
        {"X-Rewrite-URL": "/api/v1/tokens"},
        {"X-Forwarded-Prefix": "/api/v1/tokens"},
        {"X-Forwarded-User": "admin", "X-Remote-User": "admin", "Remote-User": "admin"},
        {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"},
    ):
        answer = api.call("GET", path, ours.token["token"], headers=headers)
        assert answer.status_code == 200, headers
        assert answer.json()["peerId"] == ours.agent["peerId"]
        assert "evil.example" not in answer.text + str(answer.headers)
        posted = api.call("POST", path, ours.token["token"], headers=headers, json={})
        assert posted.status_code == 405, headers
    assert ours.agent["peerId"] in api.gateway_peers()


def test_methods_that_nobody_offered_are_refused(api: Api, ours: Tenant) -> None:
    for method in ("PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "LATTICE"):
        for path in ("/api/v1/tokens", f"/api/v1/peers/{ours.agent['peerId']}", "/healthz"):
            answer = api.call(method, path, ours.token["token"])
            assert answer.status_code in (400, 405), (method, path, answer.text)
            assert "access-control-allow-origin" not in answer.headers


def test_body_that_is_no_json_of_ours_is_refused(api: Api, ours: Tenant) -> None:
    deep = b"[" * 100_000
    for body in (
        *(b"", b"null", b"[]", b'"x"', b"1", b"{", b'{"agentName":}', deep, b"\xff\xfe{}"),
        *(b'{"agentName": NaN}', b'{"agentName": "a", "ttl": Infinity}', b"{}" * 2),
        b'{"agentName": "a\\u0000b"}',
        b'{"agentName": "\\ud800"}',
        b'{"agentName": "' + b"a" * 100_000 + b'"}',
    ):
        answer = api.call(
            *("POST", "/api/v1/agent-enroll", ours.token["token"]),
            content=body,
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code in (400, 422), (body[:40], answer.text[:200])
        assert answer.headers["content-type"] == "application/problem+json"
    for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=x", ""):
        answer = api.call(
            *("POST", "/api/v1/agent-enroll", ours.token["token"]),
            content=b"<agentName>a</agentName>",
            headers={"Content-Type": kind},
        )
        assert answer.status_code in (400, 422), kind
