"""A client that is gone before its enrollment is answered leaves no identity that nobody has."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lattice_sdk import LatticeAgent, ServerUnreachable


@pytest.fixture
def token(plane: Any) -> str:
    plane.workspace("ws")
    return str(plane.token(kind="workspace", workspaceId="ws", uses=2))


def send_enrollment(plane: Any, token: str, **body: str) -> socket.socket:
    """An enrollment that has been sent, and whose answer nobody has read."""
    text = json.dumps({"agentName": "gone", **body})
    connection = socket.create_connection(("127.0.0.1", int(plane.url.rpartition(":")[2])))
    connection.sendall(
        f"POST /api/v1/agent-enroll HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
    )
    return connection


def acknowledge(gateway: Any) -> None:
    gateway.silent = False
    gateway.send({"type": "ack", "revision": gateway.messages[-1]["revision"]})


def test_client_that_hung_up_leaves_no_identity(
    plane: Any, gateway: Any, token: str, wait: Any
) -> None:
    gateway.silent = True
    with send_enrollment(plane, token):
        wait("the update", lambda: gateway.peers)
    acknowledge(gateway)
    wait("the identity to be taken back", lambda: not plane.peers() and not gateway.peers)
    for _ in range(2):  # the use was given back
        plane.enrolled(token)


def test_client_that_stays_is_answered(plane: Any, gateway: Any, token: str, wait: Any) -> None:
    """The control of the test above."""
    gateway.silent = True
    with send_enrollment(plane, token) as connection:
        wait("the update", lambda: gateway.peers)
        acknowledge(gateway)
        assert connection.recv(100).startswith(b"HTTP/1.1 201")
    assert len(plane.peers()) == 1


def test_abandoned_attempt_does_not_take_the_identity_of_the_next_one(
    plane: Any, gateway: Any, token: str, wait: Any, key: Callable[[], str]
) -> None:
    """What an SDK does whose first attempt timed out."""
    public = key()
    gateway.silent = True
    with send_enrollment(plane, token, publicKey=public):
        wait("the update", lambda: gateway.peers)
    with send_enrollment(plane, token, publicKey=public) as second:
        wait("the second attempt", lambda: len(plane.events("enrolled")) == 2)
        acknowledge(gateway)
        answer = second.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 201")
    identity = json.loads(answer.partition(b"\r\n\r\n")[2])
    seen = httpx.get(
        f"{plane.url}/api/v1/peers/{identity['peerId']}",
        headers={"Authorization": f"Bearer {identity['enrollmentToken']}"},
        timeout=30,
    )
    assert seen.status_code == 200
    assert list(gateway.peers) == [identity["peerId"]]


def test_agent_that_gives_up_on_a_slow_server_leaves_no_identity(
    plane: Any, gateway: Any, token: str, wait: Any
) -> None:
    gateway.silent = True
    with pytest.raises(ServerUnreachable):
        LatticeAgent(
            server=plane.url, token=token, agent_name="gone", backend="none", timeout=3
        ).open()
    wait("the enrollment", lambda: len(plane.peers()) == 1)
    acknowledge(gateway)
    wait("the identity to be taken back", lambda: not plane.peers() and not gateway.peers)
