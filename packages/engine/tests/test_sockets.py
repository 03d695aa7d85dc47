"""Sockets of a tunnel's network namespace, through a real gateway."""

import base64
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lattice_engine import EngineError, EngineProcess, namespace_socket

GATEWAY, SERVICE, AGENT = "10.96.0.1", "10.96.0.7", "10.96.2.5"
SO_NETNS_COOKIE = 71


def key_pair() -> tuple[str, str]:
    key = X25519PrivateKey.generate()
    raw = key.private_bytes_raw(), key.public_key().public_bytes_raw()
    return base64.b64encode(raw[0]).decode(), base64.b64encode(raw[1]).decode()


@dataclass
class Place:
    engine: EngineProcess
    network: dict[str, Any]


def tunnel(gateway: dict[str, Any], address: str, key: str, **more: Any) -> dict[str, Any]:
    return {
        "interface": {"privateKey": key, "addresses": [f"{address}/32"]},
        "peer": {
            "publicKey": gateway["publicKey"],
            "endpoint": f"127.0.0.1:{gateway['listenPort']}",
            "allowedIPs": ["10.96.0.0/16"],
            "persistentKeepalive": 25,
        },
        "probe": {"address": GATEWAY, "timeout": 10},
        **more,
    }


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An agent's tunnel in a namespace, which may reach one port of one service."""
    private, _ = key_pair()
    key = tmp_path / "key"
    key.write_text(private)
    agent, service = key_pair(), key_pair()
    with (
        EngineProcess.start_gateway(
            private_key_file=key, listen_port=0, address=f"{GATEWAY}/16", namespace="own"
        ) as gateway,
        EngineProcess.start_netstack() as engine,
        socket.create_server(("127.0.0.1", 0)) as target,
    ):
        threading.Thread(target=echo, args=(target,), daemon=True).start()
        grant = {"to": SERVICE, "protocol": "tcp", "port": 80}
        peers = [
            {"id": "agent", "publicKey": agent[1], "address": AGENT, "grants": [grant]},
            {"id": "service", "publicKey": service[1], "address": SERVICE, "grants": []},
        ]
        gateway.client.put_state(
            {"revision": 1, "upsert": [{**peer, "expiresIn": 600} for peer in peers]}
        )
        status = gateway.client.status()
        engine.client.put_tunnel("service", tunnel(status, SERVICE, service[0]))
        port = target.getsockname()[1]
        engine.client.add_forward("service", {"listenPort": 80, "target": f"127.0.0.1:{port}"})
        wanted = {"kind": "namespace"}
        made = engine.client.put_tunnel("agent", tunnel(status, AGENT, agent[0], network=wanted))
        yield Place(engine, made["network"])


def echo(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(connection.recv(100))


def test_a_socket_from_outside_is_one_of_the_namespace(place: Place) -> None:
    with namespace_socket(place.network["sockets"]) as connection:
        cookie = connection.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        assert int.from_bytes(cookie, "little") == place.network["namespace"]["cookie"]
        assert not connection.get_inheritable()
        connection.settimeout(10)
        connection.connect((SERVICE, 80))
        assert connection.getsockname()[0] == AGENT
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"


@pytest.mark.parametrize("destination", [(SERVICE, 81), (GATEWAY, 80), ("192.0.2.1", 443)])
def test_what_is_not_granted_is_refused_at_once(place: Place, destination: tuple[str, int]) -> None:
    with namespace_socket(place.network["sockets"]) as connection:
        connection.settimeout(10)
        with pytest.raises(ConnectionRefusedError):
            connection.connect(destination)


def test_the_hosts_loopback_is_not_there(place: Place) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as host,
        namespace_socket(place.network["sockets"]) as connection,
    ):
        connection.settimeout(10)
        with pytest.raises(ConnectionRefusedError):
            connection.connect(host.getsockname())


def test_no_socket_of_a_tunnel_that_is_down(place: Place) -> None:
    place.engine.client.delete_tunnel("agent")
    with pytest.raises(EngineError) as failure:
        namespace_socket(place.network["sockets"])
    assert failure.value.code == "tunnel_down"


def test_a_lost_keeper_is_a_lost_tunnel(place: Place) -> None:
    with namespace_socket(place.network["sockets"]) as connection:
        connection.settimeout(10)
        connection.connect((SERVICE, 80))
        os.kill(place.network["namespace"]["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 15
        while place.engine.client.get_tunnel("agent")["state"] != "lost":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert place.engine.client.get_tunnel("service")["state"] == "up"


def test_a_killed_engine_leaves_no_file(place: Place) -> None:
    os.kill(place.engine.pid, signal.SIGKILL)
    place.engine.close()
    assert not place.engine.control.parent.exists()
