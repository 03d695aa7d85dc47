"""The edge of the server: dribbled requests, unread answers, floods, guessing, headers and TLS."""

from __future__ import annotations

import contextlib
import select
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


def connection(plane: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(plane.url.rpartition(":")[2])), timeout=20)


def closed(client: socket.socket) -> bool:
    """Whether the server ends the connection; waits for the socket's timeout at most."""
    with contextlib.suppress(ConnectionResetError):
        while client.recv(65536):
            continue
    return True


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that a test can wait for."""
    for name, seconds in (
        ("HEADER_SECONDS", 0.3),
        ("REQUEST_SECONDS", 0.6),
        ("UNREAD_SECONDS", 0.3),
        ("CLOSE_SECONDS", 0.1),
    ):
        monkeypatch.setattr(f"lattice_server.connections.{name}", seconds)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HT",
        HEAD,
        HEAD + b"X-A: b\r\n",
        b"POST /api/v1/agent-enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
        b"POST /api/v1/peers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        # answered before its body has come, which then never does
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
        # a whole request, and the beginning of another
        HEAD + b"\r\n" + HEAD,
    ],
)
def test_request_that_does_not_come_is_not_waited_for(plane: Any, hasty: None, sent: bytes) -> None:
    with connection(plane) as client:
        client.sendall(sent)
        assert closed(client)


def test_dribbled_headers_do_not_move_the_deadline(plane: Any, hasty: None) -> None:
    with connection(plane) as client:
        client.sendall(HEAD)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + 20:
                client.sendall(b"X-A: b\r\n")
                time.sleep(0.01)
        assert time.monotonic() - began < 15


def test_slow_clients_do_not_keep_others_waiting(plane: Any) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connection(plane)) for _ in range(200)]
        for client in slow:
            client.sendall(HEAD)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: plane.http.get("/healthz"), range(80)))
        assert {answer.status_code for answer in answers} == {200}


def test_keep_alive_and_long_lives_are_left_alone(plane: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("lattice_server.connections.HEADER_SECONDS", 5)
    monkeypatch.setattr("lattice_server.connections.REQUEST_SECONDS", 5)
    with connection(plane) as client:
        for _ in range(3):
            client.sendall(HEAD + b"\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                part = client.recv(65536)
                assert part, f"closed after {answer!r}"
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(5.5)  # longer than a request may take: between requests nothing is due
    gateway = plane.gateway()
    token = plane.workspace("ws")
    time.sleep(5.5)  # nor on a web socket
    plane.enrolled(token)
    assert gateway.closed is None


def test_answer_that_nobody_reads_is_given_up(
    plane: Any, hasty: None, wait: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lattice_server.connections.UNREAD_SECONDS", 3)
    rows = [(f"ws-{number:0100d}", 0) for number in range(400)]
    with sqlite3.connect(plane.settings.data_dir / "lattice.db") as connection_:
        connection_.executemany("INSERT INTO workspaces (id, created_at) VALUES (?, ?)", rows)
    path = "/api/v1/workspaces?limit=1000"
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {plane.admin}\r\n\r\n"
    with connection(plane) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request.encode() * 150)
        wait("the server to wait", lambda: stuck(plane))
        wait("the end", lambda: not stuck(plane))


def stuck(plane: Any) -> list[Any]:
    """Connections whose client does not read."""
    return [c for c in list(plane.server.server_state.connections) if c.flow.write_paused]


def test_headers_have_a_limit(plane: Any) -> None:
    with connection(plane) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        answered = False
        for _ in range(100):
            try:
                client.sendall(b"X-A: " + b"b" * 1000 + b"\r\n")
            except ConnectionError:
                answered = True  # it was, and is closed
                break
            if select.select([client], [], [], 0.01)[0]:
                answered = client.recv(1000).startswith(b"HTTP/1.1 400")
                break
        assert answered
    assert plane.http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "request_",
    [
        # what proxies and servers may read differently: request smuggling
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-A : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
        b"\r\n" * 100,
    ],
)
def test_request_that_is_none_is_refused(plane: Any, request_: bytes) -> None:
    with connection(plane) as client:
        client.sendall(request_)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            answer = client.recv(1000)
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 405")) or not answer
        assert b"Traceback" not in answer
    assert plane.http.get("/healthz").status_code == 200


BIG = b"[" + b" " * 200_000


def unfinished(client: socket.socket, body: bytes) -> None:
    """Send a request whose body never ends."""
    client.sendall(
        b"POST /api/v1/workspaces HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + body
    )


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What requests have taken, one after another."""
    from lattice_server.holding import Held

    taken: list[int] = []
    add = Held.add

    def hold(self: Any, count: int) -> None:
        add(self, count)
        taken.append(count)

    monkeypatch.setattr(Held, "add", hold)
    return taken


def test_large_bodies_of_one_source_are_bounded(
    plane: Any, monkeypatch: Any, wait: Any, held: list[int]
) -> None:
    monkeypatch.setattr("lattice_server.holding.SOURCE_BYTES", 300_000)
    with connection(plane) as client:
        unfinished(client, BIG)
        wait("the first one to be held", lambda: sum(held) == len(BIG))
        answer = plane.call("POST", "/api/v1/workspaces", plane.admin, content=BIG + b"]")
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        small = plane.call("POST", "/api/v1/workspaces", plane.admin, json={"workspaceId": "ws"})
        assert small.status_code == 201
        elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=elsewhere, timeout=30) as other:
            path = f"{plane.url}/api/v1/workspaces"
            headers = {"Authorization": f"Bearer {plane.admin}"}
            # 400: it is no JSON of ours. It was read.
            assert other.post(path, content=BIG, headers=headers).status_code == 400

    def there_is_room_again() -> bool:
        again = plane.call("POST", "/api/v1/workspaces", plane.admin, content=BIG + b"]")
        return bool(again.status_code == 400)

    wait("room", there_is_room_again)


def test_the_source_that_holds_the_most_gives_way(
    plane: Any, monkeypatch: Any, wait: Any, held: list[int]
) -> None:
    monkeypatch.setattr("lattice_server.holding.MAX_HELD_BYTES", 500_000)
    with contextlib.ExitStack() as stack:
        flood = [
            stack.enter_context(
                socket.create_connection(
                    ("127.0.0.1", int(plane.url.rpartition(":")[2])), 20, ("127.0.0.2", 0)
                )
            )
            for _ in range(2)
        ]
        for client in flood:
            unfinished(client, BIG)
        wait("them to be held", lambda: sum(held) == 2 * len(BIG))
        answer = plane.call("POST", "/api/v1/workspaces", plane.admin, content=BIG)
        assert answer.status_code == 400
        readable, _, _ = select.select(flood, [], [], 20)
        assert readable
        assert readable[0].recv(100).startswith(b"HTTP/1.1 503")


def test_connections_of_one_source_are_bounded(make_control_plane: Any, wait: Any) -> None:
    with make_control_plane(connections_per_source=20) as plane, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connection(plane)) for _ in range(30)]
        # What the server says without having been asked is that it is over.
        wait("the refusals", lambda: len(select.select(clients, [], [], 1)[0]) >= 10)
        for client in clients:
            client.close()
        with httpx.Client(base_url=plane.url, timeout=30) as http:
            assert "lattice_connections_refused_total" in http.get("/metrics").text


def test_closed_web_socket_gives_its_place_back(make_control_plane: Any) -> None:
    with make_control_plane(connections_per_source=16) as plane:
        for _ in range(40):
            plane.gateway().close()
        assert plane.gateway().closed is None


def test_guessing_is_answered_with_429_and_does_not_lock_the_others_out(
    make_control_plane: Any,
) -> None:
    with make_control_plane(auth_failures_per_minute=10) as plane:
        plane.gateway()
        token = plane.workspace("ws")
        plane.enrolled(token)
        statuses = [plane.enroll(f"lt-w{number:043d}").status_code for number in range(30)]
        assert statuses[:10] == [401] * 10
        # One more attempt is free every six seconds.
        assert set(statuses[10:]) <= {401, 429}
        assert statuses.count(429) >= 15
        refused = (plane.enroll("lt-w" + "x" * 43) for _ in range(30))
        answer = next(answer for answer in refused if answer.status_code == 429)
        assert answer.json()["code"] == "too_many_requests"
        assert int(answer.headers["retry-after"]) >= 1
        plane.enrolled(token)
        assert plane.manage("GET", "/api/v1/tokens")
        assert 'lattice_refusals_total{code="too_many_requests"}' in plane.http.get("/metrics").text


def test_revoked_token_is_stopped_by_itself(make_control_plane: Any) -> None:
    with make_control_plane(auth_failures_per_minute=10) as plane:
        plane.workspace("ws")
        made = plane.manage("POST", "/api/v1/tokens", {"kind": "workspace", "workspaceId": "ws"})
        plane.manage("DELETE", f"/api/v1/tokens/{made['id']}")
        codes = [
            plane.call("GET", "/api/v1/peers", made["token"]).json()["code"] for _ in range(20)
        ]
        assert codes[:10] == ["token_revoked"] * 10
        assert codes[-1] == "too_many_requests"


def test_flood_of_one_token_does_not_starve_another(
    plane: Any, gateway: Any, wait: Any, monkeypatch: Any
) -> None:
    """A gateway that is slow makes everybody wait; who floods waits behind itself."""
    monkeypatch.setattr(plane.control.lanes, "_waiting", 50)
    plane.control.settings.gateway_wait = timedelta(seconds=60)
    flooding, other = plane.workspace("ws-flood"), plane.workspace("ws-other")
    gateway.silent = True
    with ThreadPoolExecutor(95) as pool:
        flood = [pool.submit(plane.enroll, flooding, "flood") for _ in range(90)]
        wait("the flood", lambda: len(plane.peers()) == 16)
        wait("the refusals", lambda: sum(f.done() for f in flood) == 24)
        one = pool.submit(plane.enroll, other, "other")
        wait("the other", lambda: len(plane.peers()) == 17)
        gateway.silent = False
        gateway.send({"type": "ack", "revision": gateway.messages[-1]["revision"]})
        assert one.result().status_code == 201
        statuses = sorted(f.result().status_code for f in flood)
    assert statuses == [201] * 66 + [429] * 24
    assert len(plane.peers()) == 67


def test_lies_about_the_source_do_not_spread_failures(make_control_plane: Any) -> None:
    with make_control_plane(auth_failures_per_minute=5) as plane:
        statuses = [
            plane.call(
                "GET",
                "/api/v1/peers",
                f"lt-w{number:043d}",
                headers={"X-Forwarded-For": f"198.51.100.{number}"},
            ).status_code
            for number in range(15)
        ]
        assert statuses[-1] == 429
