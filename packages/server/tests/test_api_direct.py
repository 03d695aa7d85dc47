"""What is served before the routes are searched is answered as the routes would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lattice_server.api.direct import Direct

ENROLL = "/api/v1/agent-enroll"
JSON = {"Content-Type": "application/json"}
# Of an answer, what differs each time.
VARIES = {"peerId", "overlayIP", "enrollmentToken", "expiresAt", "renewAfter", "maxExpiresAt"}


@pytest.fixture
def token(plane: Any, gateway: Any) -> str:
    return str(plane.workspace("ws"))


@contextmanager
def by_the_routes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(Direct, "takes", staticmethod(lambda _scope: False))
        yield


def essence(answer: Any) -> Any:
    """Status, headers and content, less what differs each time."""
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name not in ("date", "lattice-time", "content-length")
    }
    assert "lattice-time" in answer.headers
    content = answer.json() if answer.content else None
    if isinstance(content, dict):
        content = {k: None if k in VARIES else v for k, v in content.items()}
        content.pop("wireguardConfig", None)
        content.pop("instance", None)
    return answer.status_code, headers, content


def test_plain_requests_do_not_reach_the_routes(
    plane: Any, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable(*_: Any) -> None:
        raise AssertionError("the routes were reached")

    monkeypatch.setattr(plane.app, "middleware_stack", unreachable)
    one = plane.enrolled(token)
    path = f"/api/v1/peers/{one['peerId']}"
    assert plane.call("POST", f"{path}/renew", one["enrollmentToken"]).status_code == 200
    answer = plane.call("POST", f"{path}/renew", one["enrollmentToken"], json={"ttl": "5m"})
    assert answer.status_code == 200
    assert plane.call("DELETE", path, one["enrollmentToken"]).status_code == 204
    assert plane.call("GET", path, one["enrollmentToken"]).status_code == 500  # nor is the control


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"agentName": "a"}', JSON),
        (b'{"agentName": "a", "ttl": "5m", "policyPreset": "coordinator"}', JSON),
        (b'{"agentName": "a"}', {"Content-Type": "application/json; charset=utf-8"}),
        (b'{"agentName": "a"}', {"Content-Type": "text/plain"}),
        (b'{"agentName": "a"}', {}),
        (b"", JSON),
        (b"", {}),
        (b"null", JSON),
        (b"[]", JSON),
        (b'"a"', JSON),
        (b"{", JSON),
        (b"\xff\xfe", JSON),
        (b'{"agentName": 7}', JSON),
        (b'{"agentName": "a", "more": 1}', JSON),
        (b'{"agentName": "a", "ttl": "never"}', JSON),
        (b'{"agentName": "a", "ttl": "99h"}', JSON),
        (b'{"agentName": "a", "policyPreset": "none"}', JSON),
        (b'{"agentName": "a", "publicKey": "x"}', JSON),
        (b'{"agentName": "a", "agentName": "b"}', JSON),
        (b"[" * 50_000, JSON),
    ],
)
def test_enrollment_is_answered_as_the_route_answers_it(
    plane: Any, token: str, monkeypatch: pytest.MonkeyPatch, body: bytes, headers: dict[str, str]
) -> None:
    def ask(who: str | None) -> Any:
        return essence(plane.call("POST", ENROLL, who, content=body, headers=headers))

    for who in (token, "lt-wforeign", None):
        direct = ask(who)
        with by_the_routes(monkeypatch):
            assert ask(who) == direct


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"null", b"[]", b"{", b'{"ttl": "5m"}', b'{"ttl": 1}']
)
@pytest.mark.parametrize("headers", [{}, JSON])
def test_renewal_is_answered_as_the_route_answers_it(
    plane: Any, token: str, monkeypatch: pytest.MonkeyPatch, body: bytes, headers: dict[str, str]
) -> None:
    one = plane.enrolled(token)

    def ask(who: str, peer: str) -> Any:
        path = f"/api/v1/peers/{peer}/renew"
        return essence(plane.call("POST", path, who, content=body, headers=headers))

    for who in (one["enrollmentToken"], token, "lt-eforeign"):
        for peer in (one["peerId"], "peer-of-nobody"):
            direct = ask(who, peer)
            with by_the_routes(monkeypatch):
                assert ask(who, peer) == direct


@pytest.mark.parametrize(
    "path",
    ["{}", "{}/", "{}/renew/", "{}?force=1", "peer-of-nobody", "", "a/b", "%2e%2e", "x" * 65],
)
@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
def test_paths_lead_where_the_routes_lead(
    plane: Any, token: str, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    def ask() -> Any:
        peer = plane.enrolled(token)["peerId"]
        answer = plane.call(method, f"/api/v1/peers/{path.format(peer)}", token)
        status, headers, content = essence(answer)
        return status, headers, str(content).replace(peer, "peer")

    direct = ask()
    with by_the_routes(monkeypatch):
        assert ask() == direct


def test_second_authorization_header_is_no_authorization(plane: Any, token: str) -> None:
    answer = plane.http.post(
        ENROLL,
        json={"agentName": "a"},
        headers=[("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")],
    )
    assert (answer.status_code, answer.json()["code"]) == (401, "missing_token")
