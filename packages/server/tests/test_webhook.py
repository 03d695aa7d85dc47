"""Events reach a real receiver: signed, in order, each at least once, and nothing waits for it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from lattice_server.bootstrap import StartError
from lattice_server.webhook import LONGEST_PAUSE, pause_after, read_secret

SECRET = b"0123456789abcdef0123456789abcdef"


class Receiver:
    """Takes deliveries; ``statuses`` are its next answers, 204 when there are none."""

    def __init__(self) -> None:
        self.deliveries: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.statuses.pop(0) if receiver.statuses else 204
                receiver.deliveries.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/lattice"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def events(self) -> list[dict[str, Any]]:
        return [e for _, body in self.deliveries for e in json.loads(body)["data"]["events"]]

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events()]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "webhook.secret"
    file.write_text("whsec_" + base64.b64encode(SECRET).decode() + "\n")
    return file


def test_events_are_delivered_signed_and_in_order(
    make_control_plane: Any, receiver: Receiver, secret: Path, wait: Any
) -> None:
    with make_control_plane(webhook_url=receiver.url, webhook_secret_file=secret) as plane:
        plane.gateway()
        token = plane.workspace("ws")
        one = plane.enrolled(token)
        plane.call("DELETE", f"/api/v1/peers/{one['peerId']}", token)
        wait("the revocation", lambda: "revoked" in receiver.kinds())
        assert receiver.events() == plane.events()
        for headers, body in receiver.deliveries:
            sent = headers["webhook-timestamp"]
            signed = b".".join([headers["webhook-id"].encode(), sent.encode(), body])
            expected = base64.b64encode(hmac.digest(SECRET, signed, hashlib.sha256)).decode()
            assert headers["webhook-signature"] == f"v1,{expected}"
            assert abs(time.time() - int(sent)) < 60
            assert headers["content-type"] == "application/json"
            for hidden in (token, one["enrollmentToken"], plane.admin):
                assert hidden.encode() not in body
        ids = [headers["webhook-id"] for headers, _ in receiver.deliveries]
        assert len(set(ids)) == len(ids)


def nothing_waits(plane: Any) -> bool:
    return "lattice_webhook_backlog 0.0" in plane.http.get("/metrics").text


def test_delivery_that_fails_is_tried_again_under_its_id(
    make_control_plane: Any, receiver: Receiver, secret: Path, wait: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lattice_server.webhook.FIRST_PAUSE", 0.01)
    with make_control_plane(webhook_url=receiver.url, webhook_secret_file=secret) as plane:
        plane.token(kind="observer")
        wait("the first", lambda: receiver.kinds() == ["token.created"])
        # 302 is no success, and where it leads nothing is sent.
        receiver.statuses = [500, 302, 429]
        plane.token(kind="gateway")
        wait("four attempts", lambda: len(receiver.deliveries) == 5)
        ids = {headers["webhook-id"] for headers, _ in receiver.deliveries[1:]}
        assert len(ids) == 1
        wait("the figures", lambda: 'result="failed"} 3.0' in plane.http.get("/metrics").text)
        wait("nothing to be left", lambda: nothing_waits(plane))


def test_restart_goes_on_where_it_was_and_loses_nothing(
    make_control_plane: Any, receiver: Receiver, secret: Path, wait: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    settings = {"data_dir": data, "webhook_secret_file": secret}
    with make_control_plane(data_dir=data) as plane:
        plane.token(kind="observer")  # before there was a webhook: not delivered
    with make_control_plane(webhook_url=receiver.url, **settings) as plane:
        plane.token(kind="gateway")
        wait("the first", lambda: receiver.kinds() == ["token.created"])
        wait("it to be booked", lambda: nothing_waits(plane))
    with make_control_plane(data_dir=data) as plane:
        plane.workspace("ws")
    with make_control_plane(webhook_url=receiver.url, **settings) as plane:
        wait("what came meanwhile", lambda: len(receiver.events()) == 2)
        assert [e["seq"] for e in receiver.events()] == [e["seq"] for e in plane.events()[-2:]]


def test_only_wanted_types_are_delivered(
    make_control_plane: Any, receiver: Receiver, secret: Path, wait: Any
) -> None:
    with make_control_plane(
        webhook_url=receiver.url, webhook_secret_file=secret, webhook_events="revoked,quarantined"
    ) as plane:
        plane.gateway()
        token = plane.workspace("ws")
        one = plane.enrolled(token)
        plane.call("DELETE", f"/api/v1/peers/{one['peerId']}", token)
        wait("the revocation", lambda: receiver.kinds() == ["revoked"])


def test_receiver_that_never_answers_holds_nobody_up(
    make_control_plane: Any, secret: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lattice_server.webhook.TIMEOUT_SECONDS", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with make_control_plane(webhook_url=url, webhook_secret_file=secret) as plane:
            plane.gateway()
            token = plane.workspace("ws")
            began = time.monotonic()
            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda _: plane.enroll(token), range(40)))
            assert {answer.status_code for answer in answers} == {201}
            # The receiver alone takes a minute to be given up on.
            assert time.monotonic() - began < 45
            assert "lattice_webhook_backlog" in plane.http.get("/metrics").text
        # and the server stops all the same


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"webhook_url": "http://hooks.example/x"}, "loopback"),
        ({"webhook_url": "file:///etc/passwd"}, "https"),
        ({"webhook_url": "https://user:pw@hooks.example/"}, "https"),
        ({"webhook_url": "https://hooks.example/", "webhook_secret_file": None}, "secret"),
        ({"webhook_url": "https://hooks.example/", "webhook_events": "enroled"}, "enroled"),
    ],
)
def test_webhook_that_would_not_work_is_refused_at_the_start(
    tmp_path: Path, secret: Path, settings: dict[str, Any], told: str
) -> None:
    from lattice_server.control import ControlPlane
    from lattice_server.settings import ServerSettings
    from lattice_server.webhook import Webhook

    async def make() -> None:
        chosen = {"webhook_secret_file": secret, **settings}
        Webhook.of(ControlPlane(ServerSettings(data_dir=tmp_path, **chosen)))

    import asyncio

    with pytest.raises(StartError, match=told) as refused:
        asyncio.run(make())
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "not base64!", "c2hvcnQ=", "whsec_c2hvcnQ="])
def test_weak_secret_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret"
    file.write_text(text)
    with pytest.raises(StartError, match="secret"):
        read_secret(file)
    with pytest.raises(StartError, match="cannot be read"):
        read_secret(tmp_path / "none")


def test_pauses_grow_up_to_five_minutes_and_follow_the_receiver() -> None:
    pauses: Callable[[int], float] = lambda n: pause_after(n, OSError())  # noqa: E731
    assert 0.7 < pauses(1) < 1.3
    assert pauses(5) > pauses(1) * 5
    assert pauses(1000) == LONGEST_PAUSE
    busy = httpx.Response(429, headers={"Retry-After": "60"})
    error = httpx.HTTPStatusError("busy", request=httpx.Request("POST", "http://x"), response=busy)
    assert pause_after(1, error) == 60
