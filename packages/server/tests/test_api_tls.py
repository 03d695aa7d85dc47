"""TLS as it is served, certificates that are exchanged, and what a process leaves readable."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lattice_server.connections import ServingLoop
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


def tls(port: int, **options: Any) -> tuple[str, str]:
    """Version and cipher that are agreed on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, value in options.items():
        if name == "ciphers":
            context.set_ciphers(value)
        else:
            setattr(context, name, value)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain) as client,
    ):
        cipher = client.cipher()
        assert cipher is not None
        return str(client.version()), cipher[0]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_is_of_today(start: Callable[..., Process], tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    url = start(host="0.0.0.0", tls_cert=certificate, tls_key=key).url()
    port = int(url.rpartition(":")[2])
    assert tls(port)[0] == "TLSv1.3"
    version, cipher = tls(port, maximum_version=ssl.TLSVersion.TLSv1_2)
    assert version == "TLSv1.2"
    assert cipher.startswith("ECDHE-")
    for refused in (
        {"maximum_version": ssl.TLSVersion.TLSv1_1, "minimum_version": ssl.TLSVersion.TLSv1},
        {"maximum_version": ssl.TLSVersion.TLSv1_2, "ciphers": "AES128-SHA:AES256-SHA256"},
        {"maximum_version": ssl.TLSVersion.TLSv1_2, "ciphers": "ECDHE-ECDSA-AES128-SHA256"},
    ):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            tls(port, **refused)


def test_certificate_is_exchanged_without_a_restart(
    start: Callable[..., Process], tmp_path: Path, wait: Any
) -> None:
    certificate, key = self_signed(tmp_path)
    server = start(host="0.0.0.0", tls_cert=certificate, tls_key=key)
    port = int(server.url().rpartition(":")[2])

    def served() -> str:
        return ssl.get_server_certificate(("127.0.0.1", port))

    former = served()
    good = certificate.read_bytes()
    certificate.write_text("no certificate")
    os.kill(server.process.pid, signal.SIGHUP)
    assert served() == former
    directory = tmp_path / "new"
    directory.mkdir()
    fresh, fresh_key = self_signed(directory)
    assert good != fresh.read_bytes()
    certificate.write_bytes(fresh.read_bytes())
    key.write_bytes(fresh_key.read_bytes())
    os.kill(server.process.pid, signal.SIGHUP)
    wait("the new certificate", lambda: served() != former)
    assert served() == fresh.read_text()
    context = ssl.create_default_context(cafile=str(fresh))
    answer = httpx.get(f"https://127.0.0.1:{port}/healthz", verify=context, timeout=30)
    assert answer.status_code == 200


def test_handshake_that_does_not_come_is_not_waited_for(
    tmp_path: Path, make_control_plane: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lattice_server.connections.HANDSHAKE_SECONDS", 0.3)
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(
            asyncio.Protocol, "127.0.0.1", 0, ssl=context
        )
        host, port = server.sockets[0].getsockname()
        async with server:
            reader, writer = await asyncio.open_connection(host, port)
            async with asyncio.timeout(15):
                assert await reader.read() == b""
            writer.close()

    with asyncio.Runner(loop_factory=ServingLoop) as runner:
        runner.run(serve())


def test_the_log_tells_no_secret_and_files_are_private(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    server = start(log_level="debug")
    url = server.url()
    data = tmp_path / "data"
    assert {file.name: oct(file.stat().st_mode & 0o077) for file in data.iterdir()} == {
        file.name: "0o0" for file in data.iterdir()
    }
    admin = (data / "admin.token").read_text().strip()
    jwt = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzZWNyZXQifQ.c2lnbmF0dXJl"
    with httpx.Client(base_url=f"{url}/api/v1", timeout=30) as client:
        for bearer in (admin, jwt, "lt-wsecretsecretsecret"):
            client.post("/agent-enroll", headers={"Authorization": f"Bearer {bearer}"})
            # A token where a name belongs, in a path and in a body.
            client.get(f"/peers/{bearer}", headers={"Authorization": f"Bearer {admin}"})
            client.post(
                "/workspaces",
                headers={"Authorization": f"Bearer {admin}"},
                json={"workspaceId": f"{bearer}!"},
            )
    server.process.send_signal(signal.SIGTERM)
    _, log = server.process.communicate(timeout=20)
    for secret in (admin, jwt, jwt.split(".")[1], "lt-wsecretsecretsecret"):
        assert secret not in log
    assert "GET /api/v1/peers/" in log
