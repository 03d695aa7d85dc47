"""Control planes that are not there, are something else, are slow, or disagree about the time."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import World
from lattice_sdk import LatticeAgent, LatticeError
from lattice_sdk.errors import (
    AuthenticationFailed,
    ConfigurationError,
    InvalidRequest,
    NotPermitted,
    ServerUnreachable,
    UnexpectedAnswer,
)
from lattice_server.ports import free_port
from support.answering import answering, send
from support.waiting import children, wait_for

TOKEN = "lt-a-secret-that-nobody-prints"


def failure(server: str, **settings: Any) -> LatticeError:
    """What opening an agent at this server raises; nothing of it is left."""
    processes, threads = children(), set(threading.enumerate())
    with pytest.raises(LatticeError) as raised:
        LatticeAgent(**{"server": server, "token": TOKEN, "timeout": 10, **settings}).open()
    wait_for("the engine to end", lambda: children() <= processes)
    # Where others' identities keep the SDK's loop, its idle workers stay with it.
    kept = any(thread.name == "lattice" for thread in threads)

    def left() -> list[threading.Thread]:
        new = [t for t in set(threading.enumerate()) - threads if "lattice" in t.name]
        return [thread for thread in new if not (kept and thread.name.startswith("lattice-call"))]

    wait_for("the SDK's threads to end", lambda: not left())
    error = raised.value
    assert TOKEN not in f"{error}{error!r}"
    assert error.hint, "it does not say what to do"
    return error


def test_unreachable_server_is_named_with_what_to_do() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    error = failure(url)
    assert isinstance(error, ServerUnreachable)
    assert url in str(error)


def test_no_token_says_where_one_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("LATTICE_TOKEN", "LATTICE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LATTICE_CONFIG", str(tmp_path / "none.toml"))
    error = failure(f"http://127.0.0.1:{free_port()}", token=None)
    assert isinstance(error, ConfigurationError)
    assert error.code == "missing_token"
    assert "LATTICE_TOKEN" in str(error)


def test_name_that_does_not_resolve_is_unreachable() -> None:
    assert isinstance(failure("http://no-such-host.invalid"), ServerUnreachable)


@pytest.mark.parametrize("status", [200, 201, 404, 502])
def test_server_answering_html_is_recognised(status: int) -> None:
    page = b"<html><body><h1>Welcome to nginx</h1></body></html>"
    with answering(lambda handler: send(handler, status, "text/html", page)) as url:
        error = failure(url)
    assert isinstance(error, LatticeError)
    assert "html" in str(error).lower() or str(status) in str(error)
    assert "<h1>" not in str(error)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{}", b'{"peerId": 7}', b"{" * 100, b"\xff\xfe"]
)
def test_answer_that_is_no_identity_is_recognised(body: bytes) -> None:
    with answering(lambda handler: send(handler, 201, "application/json", body)) as url:
        assert isinstance(failure(url), UnexpectedAnswer)


def test_slow_server_is_given_up_within_the_timeout() -> None:
    release = threading.Event()
    with answering(lambda _: release.wait(30) and None) as url:
        started = time.monotonic()
        error = failure(url, timeout=1)
        took = time.monotonic() - started
        release.set()
    assert isinstance(error, ServerUnreachable)
    assert took < 10  # one second, what is left of the attempt, and a loaded machine


def test_server_that_drips_is_given_up_within_the_timeout() -> None:
    ended = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(201)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not ended.wait(0.05):
            handler.wfile.write(b" ")

    with answering(drip) as url:
        started = time.monotonic()
        failure(url, timeout=1)
        took = time.monotonic() - started
        ended.set()
    assert took < 10


def test_server_that_hangs_up_is_said_to_do_so() -> None:
    def hang_up(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    with answering(hang_up) as url:
        assert "disconnected" in str(failure(url))


def test_endless_answer_is_not_read_to_the_end() -> None:
    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(201)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write(b" " * 65536)
        except OSError:
            return

    with answering(flood) as url:
        started = time.monotonic()
        failure(url, timeout=2)
        assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"token": TOKEN}, AuthenticationFailed),
        ({"workspace_id": "another"}, (NotPermitted, InvalidRequest)),
        ({"policy_preset": "omnipotent"}, (NotPermitted, InvalidRequest)),
        ({"ttl": "1000000h"}, (NotPermitted, InvalidRequest)),
        ({"ttl": "1x"}, (ConfigurationError, InvalidRequest)),
        ({"ttl": "0s"}, (ConfigurationError, InvalidRequest)),
        ({"ttl": timedelta(seconds=-1)}, (ConfigurationError, InvalidRequest)),
        ({"agent_name": "x" * 1000}, (ConfigurationError, InvalidRequest)),
        ({"server": "ftp://example"}, ConfigurationError),
        ({"server": "not a url"}, ConfigurationError),
        ({"backend": "none-such"}, LatticeError),
    ],
)
def test_refused_enrollment_says_why(
    world: World, settings: dict[str, Any], kind: type[LatticeError]
) -> None:
    path = f"/api/v1/peers?workspaceId={world.fabric.workspace}"
    before = {peer["peerId"] for peer in world.fabric.request("GET", path)["items"]}
    # The world's connectors live in this process, so its thread stays.
    with pytest.raises(kind) as raised:
        world.agent(**settings).open()
    assert raised.value.hint
    assert world.fabric.workspace_token not in str(raised.value)
    assert TOKEN not in str(raised.value)
    after = {peer["peerId"] for peer in world.fabric.request("GET", path)["items"]}
    assert after <= before


def test_revoked_and_expired_tokens_are_told_from_unknown_ones(world: World) -> None:
    body = {"kind": "workspace", "workspaceId": world.fabric.workspace}
    made = world.fabric.request("POST", "/api/v1/tokens", body)
    world.fabric.request("DELETE", f"/api/v1/tokens/{made['id']}")
    with pytest.raises(AuthenticationFailed, match="revoked"):
        world.agent(token=made["token"]).open()
    short = world.fabric.request("POST", "/api/v1/tokens", {**body, "expiresIn": "1s"})
    time.sleep(1.1)  # the token's own life, which no condition tells
    with pytest.raises(AuthenticationFailed, match="expired"):
        world.agent(token=short["token"]).open()


def test_state_that_cannot_be_kept_leaves_no_identity(world: World, tmp_path: Path) -> None:
    """The disk fails between the enrollment and its saving."""
    state, path = tmp_path / "state", f"/api/v1/peers?workspaceId={world.fabric.workspace}"
    before = {peer["peerId"] for peer in world.fabric.request("GET", path)["items"]}
    made: list[str] = []

    def forward(handler: Any) -> None:
        answer = httpx.request(
            handler.command,
            world.fabric.url + handler.path,
            content=handler.body,
            headers={name: handler.headers[name] for name in ("Authorization", "Content-Type")},
            timeout=30,
        )
        made.append(answer.json()["peerId"])
        shutil.rmtree(state)
        send(handler, answer.status_code, "application/json", answer.content)

    def delete(handler: Any) -> None:
        httpx.delete(
            world.fabric.url + handler.path,
            headers={"Authorization": handler.headers["Authorization"]},
            timeout=30,
        ).raise_for_status()
        send(handler, 200, "application/json", b"{}")

    with (
        answering(lambda h: (delete if h.command == "DELETE" else forward)(h)) as front,
        pytest.raises(ConfigurationError, match="state directory"),
    ):
        world.agent(server=front, state_dir=state).open()
    assert made
    assert {peer["peerId"] for peer in world.fabric.request("GET", path)["items"]} <= before


@contextmanager
def other_clock(url: str, shift: timedelta) -> Iterator[str]:
    """The real control plane as seen by somebody whose clock is wrong by ``shift``."""
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

    def shifted(found: re.Match[str]) -> str:
        moved = datetime.fromisoformat(found[0]) + shift
        return moved.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def forward(handler: Any) -> None:
        answer = httpx.request(
            handler.command,
            url + handler.path,
            content=handler.body,
            headers={
                name: value
                for name, value in handler.headers.items()
                if name.lower() in ("authorization", "content-type")
            },
            timeout=30,
        )
        body = stamp.sub(shifted, answer.text).encode()
        date = parsedate_to_datetime(answer.headers["Date"]) + shift
        handler.send_response_only(answer.status_code)
        handler.send_header("Date", format_datetime(date, usegmt=True))
        handler.send_header("Lattice-Time", stamp.sub(shifted, answer.headers["Lattice-Time"]))
        handler.send_header("Content-Type", answer.headers.get("Content-Type", ""))
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Connection", "close")  # so that its end is the end of all calls
        handler.end_headers()
        handler.close_connection = True
        handler.wfile.write(body)

    with answering(forward) as front:
        yield front


@pytest.mark.parametrize("days", [-1, 1])
def test_clock_that_is_wrong_by_a_day_does_no_harm(world: World, days: int) -> None:
    with other_clock(world.fabric.url, timedelta(days=days)) as front:
        opening = world.agent(server=front, ttl="12s")
        with opening as agent, agent.http_client(timeout=30) as http:
            assert 0 < agent.remaining <= 12.05
            first = agent.expires_at
            wait_for("two renewals", lambda: (agent.expires_at - first).total_seconds() > 9)
            assert http.get("http://github-tools.lattice/").status_code == 200
            assert 0 < agent.remaining <= 12.05
            peer = agent.peer_id
        path = f"/api/v1/peers?workspaceId={world.fabric.workspace}"
        assert peer not in {p["peerId"] for p in world.fabric.request("GET", path)["items"]}


def test_identity_ends_on_time_by_a_clock_that_is_wrong_by_a_day(world: World) -> None:
    """Renewals fail from the start; what counts is the time that passes."""
    with other_clock(world.fabric.url, timedelta(days=1)) as front:
        agent = world.agent(server=front, ttl="8s").open()
    granted, left = time.monotonic(), agent.remaining
    wait_for("the identity to expire", lambda: agent.state == "expired")
    assert left - 1 < time.monotonic() - granted < left + 5
    agent.close()
