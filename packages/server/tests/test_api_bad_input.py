"""Bad input: a clear error with the right status, nothing left behind, no secret in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

PATH = "/api/v1/agent-enroll"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def plane(make_control_plane: Any) -> Iterator[Any]:
    """One for all: none of these calls leaves anything behind."""
    with make_control_plane() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(plane: Any) -> Any:
    return plane.gateway()


@pytest.fixture
def token(plane: Any, gateway: Any) -> str:
    plane.workspace("ws")
    return str(plane.token(kind="workspace", workspaceId="ws", maxTTL="2h", presets=["sandboxed"]))


@pytest.fixture(autouse=True)
def nothing_left_behind(plane: Any, gateway: Any) -> Iterator[None]:
    before = len(plane.control.addresses)
    yield
    assert plane.peers() == []
    assert gateway.peers == {}
    assert plane.events("enrolled") == []
    services = plane.manage("GET", "/api/v1/services")["items"]
    for service in services:
        plane.manage("DELETE", f"/api/v1/services/{service['name']}")
    assert len(plane.control.addresses) == before - len(services)


def check(answer: Any, status: int, code: str, *secrets: str, field: str | None = None) -> None:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    if field is not None:
        assert [error["field"] for error in problem["errors"]] == [field]
    for secret in secrets:
        assert secret not in answer.text


@pytest.mark.parametrize(
    "body",
    [b"{", b"nonsense", b'{"agentName": "a"', b"\xff\xfe", b"[" * 200_000, b'{"a": NaN]'],
)
def test_malformed_json(plane: Any, token: str, body: bytes) -> None:
    answer = plane.call("POST", PATH, token, content=body, headers=JSON)
    check(answer, 400, "invalid_json", token)


def test_missing_body(plane: Any, token: str) -> None:
    check(plane.call("POST", PATH, token), 400, "invalid_json", token)
    check(plane.call("POST", PATH, token, headers=JSON), 400, "invalid_json", token)


def test_form_instead_of_json(plane: Any, token: str) -> None:
    check(plane.call("POST", PATH, token, data={"agentName": "a"}), 400, "invalid_json", token)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "agentName"),
        ({"agentName": 5}, "agentName"),
        ({"agentName": None}, "agentName"),
        ({"agentName": ""}, "agentName"),
        ({"agentName": "a" * 129}, "agentName"),
        ({"agentName": "a\nb"}, "agentName"),
        ({"agentName": "../x"}, "agentName"),
        ({"agentName": "a", "agentType": ["x"]}, "agentType"),
        ({"agentName": "a", "workspaceId": {}}, "workspaceId"),
        ({"agentName": "a", "allow": "all"}, "allow"),
        ({"agentName": "a", "allow": [{"to": "10.96.0.7"}]}, "allow.0.port"),
        ({"agentName": "a", "allow": [{"to": "10.96.0.7", "port": 0}]}, "allow.0.port"),
        ({"agentName": "a", "misspelt": 1}, "misspelt"),
    ],
)
def test_wrong_types(plane: Any, token: str, body: Any, field: str) -> None:
    answer = plane.call("POST", PATH, token, json=body)
    check(answer, 422, "invalid_request", token, field=field)


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"5", b"null", b"true"])
def test_json_that_is_no_object(plane: Any, token: str, body: bytes) -> None:
    answer = plane.call("POST", PATH, token, content=body, headers=JSON)
    check(answer, 422, "invalid_request", token)


@pytest.mark.parametrize("preset", ["root", "Sandboxed", "sandboxed2"])
def test_unknown_preset(plane: Any, token: str, preset: str) -> None:
    answer = plane.enroll(token, policyPreset=preset)
    check(answer, 422, "unknown_preset", token, field="policyPreset")


def test_preset_the_token_does_not_permit(plane: Any, token: str) -> None:
    for preset in ("coordinator", "isolated"):
        answer = plane.enroll(token, policyPreset=preset)
        check(answer, 403, "preset_not_permitted", token, field="policyPreset")


@pytest.mark.parametrize(
    "ttl", ["0", "0s", "-1h", "1x", "", "1", "500ms", "h", "1h-", 3600, "forever"]
)
def test_bad_ttl(plane: Any, token: str, ttl: Any) -> None:
    check(plane.enroll(token, ttl=ttl), 422, "invalid_ttl", token, field="ttl")


@pytest.mark.parametrize("ttl", ["2h1s", "876000h"])
def test_ttl_longer_than_the_token_allows(plane: Any, token: str, ttl: str) -> None:
    check(plane.enroll(token, ttl=ttl), 403, "ttl_not_permitted", token, field="ttl")


def test_ttl_beyond_any_date(plane: Any, token: str) -> None:
    check(plane.enroll(token, ttl="9" * 400 + "h"), 422, "invalid_ttl", token, field="ttl")


@pytest.mark.parametrize("bad", ["x", "", "A" * 44, "AAAA", 7, "A" * 43 + "=", "Ä" * 44])
def test_bad_key(plane: Any, token: str, bad: Any) -> None:
    answer = plane.enroll(token, publicKey=bad)
    check(answer, 422, "invalid_public_key", token, field="publicKey")


def test_two_megabytes(plane: Any, token: str) -> None:
    body = b'{"agentName": "' + b"a" * 2_000_000 + b'"}'
    check(plane.call("POST", PATH, token, content=body, headers=JSON), 413, "payload_too_large")


def test_two_megabytes_in_chunks(plane: Any, token: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(32):
            yield b" " * 65536

    answer = plane.call("POST", PATH, token, content=chunks(), headers=JSON)
    check(answer, 413, "payload_too_large")


def test_promised_gigabyte_is_refused_before_it_is_sent(plane: Any) -> None:
    import socket

    port = int(plane.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n{{".encode()
        )
        assert connection.recv(200).startswith(b"HTTP/1.1 413 ")


def test_unknown_or_foreign_workspace(plane: Any, token: str) -> None:
    plane.workspace("ws-other")
    texts = set()
    for workspace in ("ws-other", "ws-none"):
        answer = plane.enroll(token, workspaceId=workspace)
        check(answer, 403, "workspace_mismatch", token, field="workspaceId")
        texts.add(answer.text)
    assert len(texts) == 1  # whether it exists does not show


def test_unknown_workspace_of_a_token(plane: Any) -> None:
    answer = plane.call(
        "POST",
        "/api/v1/tokens",
        plane.admin,
        json={"kind": "workspace", "workspaceId": "ws-none"},
    )
    check(answer, 404, "unknown_workspace", plane.admin, field="workspaceId")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic bHQ6eA==", "lt-wxxxxxxxxxxxxxxx"])
def test_missing_token(plane: Any, token: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = plane.call("POST", PATH, json={"agentName": "a"}, headers=headers)
    check(answer, 401, "missing_token")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("kind", "wasgexy")
def test_token_nobody_made(plane: Any, token: str, kind: str) -> None:
    made_up = f"lt-{kind}{'A' * 43}"
    check(plane.enroll(made_up), 401, "invalid_token", made_up)


def test_token_whose_kind_letter_was_changed(plane: Any, token: str) -> None:
    for letter in "asge":
        forged = f"lt-{letter}{token[4:]}"
        answer = plane.call("GET", "/api/v1/workspaces", forged)
        check(answer, 401, "invalid_token", forged)


def test_expired_token(plane: Any, token: str, wait: Any) -> None:
    short = plane.token(kind="workspace", workspaceId="ws", expiresIn="1s")
    wait("the expiry", lambda: plane.call("GET", "/api/v1/peers", short).status_code == 401)
    check(plane.enroll(short), 401, "token_expired", short)


def test_revoked_token(plane: Any, token: str) -> None:
    made = plane.manage("GET", "/api/v1/tokens")["items"][-1]
    plane.manage("DELETE", f"/api/v1/tokens/{made['id']}")
    plane.manage("DELETE", f"/api/v1/tokens/{made['id']}")
    check(plane.enroll(token), 401, "token_revoked", token)
    check(plane.call("GET", "/api/v1/peers", token), 401, "token_revoked", token)


def test_tokens_of_other_kinds_do_not_enroll(plane: Any, token: str) -> None:
    plane.service("ws", "tools")
    for bearer in (
        plane.admin,
        plane.token(kind="gateway"),
        plane.token(kind="service", workspaceId="ws", service="tools"),
    ):
        check(plane.enroll(bearer), 403, "forbidden", bearer)


def test_only_admins_manage(plane: Any, token: str) -> None:
    gateway_token = plane.token(kind="gateway")
    for bearer in (token, gateway_token):
        for method, path in (
            ("POST", "/api/v1/workspaces"),
            ("GET", "/api/v1/workspaces"),
            ("POST", "/api/v1/tokens"),
            ("GET", "/api/v1/tokens"),
            ("DELETE", "/api/v1/tokens/token-x"),
            ("POST", "/api/v1/services"),
            ("GET", "/api/v1/services"),
            ("DELETE", "/api/v1/services/x"),
            ("GET", "/api/v1/events"),
        ):
            body = {
                "/api/v1/workspaces": {"workspaceId": "w"},
                "/api/v1/tokens": {"kind": "admin"},
                "/api/v1/services": {"name": "x", "workspaceId": "ws", "ports": [{"port": 1}]},
            }.get(path)
            answer = plane.call(method, path, bearer, json=body if method == "POST" else None)
            check(answer, 403, "forbidden", bearer)


def test_token_sent_in_the_wrong_place_is_not_repeated(plane: Any, token: str) -> None:
    for body in ({"agentName": "a", "ttl": token}, {token: 1, "agentName": "a"}):
        assert token not in plane.call("POST", PATH, token, json=body).text
    assert token not in plane.call("GET", f"/api/v1/peers/{token}", token).text


def test_unknown_route_and_method(plane: Any, token: str) -> None:
    check(plane.call("GET", "/api/v1/nothing"), 404, "not_found")
    check(plane.call("PUT", PATH, token), 405, "method_not_allowed")
    check(plane.call("GET", "/docs"), 404, "not_found")


def test_failure_inside_is_a_problem_without_a_traceback(
    plane: Any, token: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("inner secret")

    monkeypatch.setattr("lattice_server.tokens.use", broken)
    with caplog.at_level(logging.ERROR):
        answer = plane.enroll(token)
    check(answer, 500, "internal_error", token, "inner secret", "Traceback")
    assert "inner secret" in caplog.text  # for the operator


def test_logs_hold_no_secret(plane: Any, token: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        plane.call("GET", f"/api/v1/peers/x?token={token}", token)
        plane.call("GET", f"/api/v1/peers/{token}", token)
        plane.enroll(token, ttl=token)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("lattice")]
    assert any("GET /api/v1/peers/x 404" in line for line in lines)
    assert token not in "\n".join(lines)


def test_exhausted_pool(make_control_plane: Any) -> None:
    with make_control_plane(overlay="10.96.0.0/29", quarantine="1h") as plane:
        gateway = plane.gateway(overlay="10.96.0.0/29")
        token = plane.workspace("ws")
        peers = [plane.enrolled(token)["peerId"] for _ in range(5)]
        check(plane.enroll(token), 503, "address_pool_exhausted", token)
        plane.call("DELETE", f"/api/v1/peers/{peers[0]}", token)
        check(plane.enroll(token), 503, "address_pool_exhausted", token)  # it rests
        assert set(gateway.peers) == {peer["peerId"] for peer in plane.peers()} == set(peers[1:])
        assert len(plane.events("enrolled")) == len(peers)


def test_rested_address_is_used_again(make_control_plane: Any) -> None:
    with make_control_plane(overlay="10.96.0.0/30", quarantine=0) as plane:
        plane.gateway(overlay="10.96.0.0/30")
        token = plane.workspace("ws")
        for _ in range(3):
            one = plane.enrolled(token)
            assert one["overlayIP"] == "10.96.0.2/32"
            plane.call("DELETE", f"/api/v1/peers/{one['peerId']}", token)


def test_a_gateway_that_is_full_gets_no_identity_that_its_wireguard_would_refuse(
    make_control_plane: Any,
) -> None:
    with make_control_plane(overlay="10.96.0.0/16", quarantine="1h") as plane:
        gateway = plane.gateway(overlay="10.96.0.0/16", maxPeers=3)
        token = plane.workspace("ws")
        peers = [plane.enrolled(token)["peerId"] for _ in range(3)]
        for _ in range(2):
            answer = plane.enroll(token)
            check(answer, 503, "address_pool_exhausted", token)
            assert "3 live identities" in answer.json()["detail"]
            assert "a further control plane with a gateway" in answer.json()["detail"]
        plane.call("DELETE", f"/api/v1/peers/{peers[0]}", token)  # its address rests, its place not
        assert plane.enrolled(token)
        check(plane.enroll(token), 503, "address_pool_exhausted", token)
        assert len(gateway.peers) == 3


def test_connectors_take_places_of_a_gateway_and_take_over_in_one_that_is_full(
    make_control_plane: Any,
) -> None:
    with make_control_plane() as plane:
        plane.gateway(maxPeers=2)
        token = plane.workspace("ws")
        path = "/api/v1/services/{}/connect?workspaceId=ws"
        for name in ("one", "other"):
            plane.service("ws", name)
        assert plane.call("POST", path.format("one"), plane.admin).status_code == 201
        assert plane.enrolled(token)
        check(plane.enroll(token), 503, "address_pool_exhausted", token)
        refused = plane.call("POST", path.format("other"), plane.admin)
        check(refused, 503, "address_pool_exhausted")
        assert plane.call("POST", path.format("one"), plane.admin).status_code == 201
