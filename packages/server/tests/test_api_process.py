"""The control plane as a process: first start, refusals to start, TLS, signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.serverprocess import Process, self_signed


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def make(**settings: Any) -> Process:
        started.append(Process(**{"data_dir": tmp_path / "data", **settings}))
        return started[-1]

    yield make
    for process in started:
        process.end()


def admin(directory: Path) -> dict[str, str]:
    return {"Authorization": f"Bearer {(directory / 'admin.token').read_text().strip()}"}


def test_first_start_writes_the_admin_token_and_the_next_keeps_it(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    server = start()
    url, data = server.url(), tmp_path / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "admin.token").stat().st_mode) == 0o600
    headers = admin(data)
    assert httpx.get(f"{url}/api/v1/tokens", headers=headers, timeout=30).status_code == 200
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(10)
    again = start()
    answer = httpx.get(f"{again.url()}/api/v1/tokens", headers=headers, timeout=30)
    assert answer.status_code == 200
    assert admin(data) == headers


def test_start_cut_short_after_the_token_file_goes_on_with_it(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    start().url()
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    (other / "admin.token").write_text((tmp_path / "data" / "admin.token").read_text())
    url = start(data_dir=other).url()
    answer = httpx.get(f"{url}/api/v1/tokens", headers=admin(other), timeout=30)
    assert answer.status_code == 200
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "admin.token").write_text("half")
    assert "does not hold an admin token" in start(data_dir=broken).refusal()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_within_two_seconds_with_open_streams(
    start: Callable[..., Process], tmp_path: Path, number: signal.Signals
) -> None:
    server = start()
    url = server.url()
    headers = admin(tmp_path / "data")
    body = {"kind": "gateway"}
    made = httpx.post(f"{url}/api/v1/tokens", headers=headers, json=body, timeout=30)
    made.raise_for_status()
    following, ended = threading.Event(), threading.Event()

    def follow() -> None:
        with httpx.stream(
            "GET", f"{url}/api/v1/events?follow=true", headers=headers, timeout=30
        ) as answer:
            for _ in answer.iter_lines():
                following.set()
        ended.set()

    threading.Thread(target=follow, daemon=True).start()
    assert following.wait(60)
    idle = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    began = time.monotonic()
    server.process.send_signal(number)
    assert server.process.wait(20) == 0
    # Generous: the promise is two seconds, the machine of the test may be busy.
    assert time.monotonic() - began < 15
    assert ended.wait(20)
    idle.close()


def test_network_address_without_tls_is_refused(start: Callable[..., Process]) -> None:
    assert "--tls-cert" in start(host="0.0.0.0").refusal()
    assert start(host="0.0.0.0", insecure_http="true").url().startswith("http://0.0.0.0:")


def test_second_server_on_the_same_directory_is_refused(start: Callable[..., Process]) -> None:
    start().url()
    assert "another control plane uses" in start().refusal()


def test_port_in_use_is_refused(start: Callable[..., Process], tmp_path: Path) -> None:
    port = start().url().rpartition(":")[2]
    refusal = start(data_dir=tmp_path / "other", port=port).refusal()
    assert f"port {port}" in refusal
    assert "Address already in use" in refusal


def test_directory_that_cannot_be_written_is_refused(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert "cannot be written" in start(data_dir=file / "data").refusal()
    # /proc takes no directories, not even root's
    assert "cannot be written" in start(data_dir="/proc/lattice").refusal()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_refused(start: Callable[..., Process], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "lattice.db").symlink_to("/dev/full")
    assert "the database cannot be used" in start().refusal()


def test_database_that_is_none_is_refused(start: Callable[..., Process], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "lattice.db").write_bytes(b"no database at all" * 1000)
    assert "the database cannot be used" in start().refusal()


def test_another_overlay_is_refused(start: Callable[..., Process]) -> None:
    first = start()
    first.url()
    first.end()
    assert "10.96.0.0/16" in start(overlay="10.97.0.0/16").refusal()


def test_tls_serves_https(start: Callable[..., Process], tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    assert "both" in start(tls_cert=certificate).refusal()
    missing = start(tls_cert=certificate, tls_key=tmp_path / "none").refusal()
    assert "cannot be read" in missing
    url = start(host="0.0.0.0", tls_cert=certificate, tls_key=key).url()
    assert url.startswith("https://")
    context = ssl.create_default_context(cafile=str(certificate))
    port = url.rpartition(":")[2]
    answer = httpx.get(f"https://127.0.0.1:{port}/healthz", verify=context, timeout=30)
    assert answer.json() == {"status": "ok"}


def test_access_log_has_the_request_and_no_token(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    server = start(log_level="debug")
    url, headers = server.url(), admin(tmp_path / "data")
    httpx.get(f"{url}/api/v1/tokens?secret=1", headers=headers, timeout=30)
    server.process.send_signal(signal.SIGTERM)
    _, log = server.process.communicate(timeout=20)
    assert "GET /api/v1/tokens 200" in log
    assert headers["Authorization"].removeprefix("Bearer ") not in log
    assert json.dumps(log).count("secret=1") == 0


def test_answered_enrollments_survive_a_kill(start: Callable[..., Process], tmp_path: Path) -> None:
    """What was answered is in the store, and nothing else the next gateway would have to guess."""
    from concurrent.futures import ThreadPoolExecutor

    from websockets.sync.client import connect

    server = start()
    url, headers = server.url(), admin(tmp_path / "data")

    def manage(path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{url}/api/v1/{path}", headers=headers, json=body, timeout=30)
        return answer.json()

    manage("workspaces", {"workspaceId": "ws"})
    token = manage("tokens", {"kind": "workspace", "workspaceId": "ws"})["token"]
    bearer = {"Authorization": f"Bearer {manage('tokens', {'kind': 'gateway'})['token']}"}
    hello = {
        "type": "hello",
        "gateway": "default",
        "publicKey": "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=",
        "endpoint": "127.0.0.1:51820",
        "address": "10.96.0.1",
        "overlay": "10.96.0.0/16",
    }
    answered: list[str] = []

    def enroll(_: int) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
            while True:
                try:
                    answer = client.post(f"{url}/api/v1/agent-enroll", json={"agentName": "a"})
                except httpx.HTTPError:
                    return
                if answer.status_code == 201:
                    answered.append(answer.json()["peerId"])

    stream = url.replace("http", "ws", 1) + "/api/v1/gateway/stream"
    with ThreadPoolExecutor(6) as pool, connect(stream, additional_headers=bearer) as gateway:
        gateway.send(json.dumps(hello))
        for number in range(6):
            pool.submit(enroll, number)
        for text in gateway:
            gateway.send(json.dumps({"type": "ack", "revision": json.loads(text)["revision"]}))
            if len(answered) > 100:
                server.process.kill()
                break
    server.process.wait(10)
    url = start().url()
    answer = httpx.get(f"{url}/api/v1/peers?limit=1000", headers=headers, timeout=30)
    items = answer.json()["items"]
    assert set(answered) <= {item["peerId"] for item in items}
    assert len({item["overlayIP"] for item in items}) == len(items)


def test_what_was_answered_is_there_after_a_kill_in_the_middle_of_a_crowd(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    server = start()
    url, headers = server.url(), admin(tmp_path / "data")
    answered: list[str] = []

    def crowd(number: int) -> None:
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            for turn in range(1000):
                name = f"ws-{number}-{turn}"
                try:
                    answer = client.post("/api/v1/workspaces", json={"workspaceId": name})
                except httpx.HTTPError:
                    return
                assert answer.status_code == 201
                answered.append(name)

    threads = [threading.Thread(target=crowd, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 120
    while len(answered) < 100 and time.monotonic() < end:
        time.sleep(0.005)
    server.process.send_signal(signal.SIGKILL)
    for thread in threads:
        thread.join(20)
    assert 100 <= len(answered) < 16_000
    again = start().url()
    with sqlite3.connect(tmp_path / "data" / "lattice.db") as connection:
        written = {row[0] for row in connection.execute("SELECT id FROM workspaces")}
    assert httpx.get(f"{again}/healthz", timeout=30).is_success
    assert set(answered) <= written
