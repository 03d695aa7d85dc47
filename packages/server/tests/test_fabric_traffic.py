"""A connection between two real tunnels, while parts of the fabric die and come back."""

import base64
import configparser
import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lattice_engine import EngineError, EngineProcess
from lattice_server.fabric import Fabric
from support.waiting import wait_for


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(4096):
                self.request.sendall(data)


@pytest.fixture
def echo() -> Iterator[str]:
    """Address of a TCP server on the host that sends back what it gets."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Tunnels:
    """One engine with a tool service's tunnel and an agent's, enrolled by hand."""

    def __init__(self, fabric: Fabric, engine: EngineProcess, target: str) -> None:
        self.fabric, self.engine = fabric, engine
        service = fabric.create_service("echo", [{"port": 7, "protocol": "tcp"}])
        self.open("services/echo/connect", service, {}, "service")
        engine.client.add_forward("service", {"listenPort": 7, "protocol": "tcp", "target": target})
        agent = {"agentName": "agent", "ttl": "1h", "policyPreset": "sandboxed"}
        made = self.open("agent-enroll", fabric.workspace_token, agent, "agent")
        self.proxy = (made["proxy"]["host"], made["proxy"]["port"])

    def open(self, path: str, token: str, body: dict[str, Any], tunnel: str) -> dict[str, Any]:
        key = X25519PrivateKey.generate()
        public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
        answer = httpx.post(
            f"{self.fabric.url}/api/v1/{path}",
            headers={"Authorization": f"Bearer {token}"},
            json={**body, "publicKey": public},
            trust_env=False,
            timeout=20,
        )
        assert answer.status_code == 201, answer.text
        identity = answer.json()
        config = configparser.ConfigParser()
        config.read_string(identity["wireguardConfig"])
        return self.engine.client.put_tunnel(
            tunnel,
            {
                "interface": {
                    "privateKey": base64.b64encode(key.private_bytes_raw()).decode(),
                    "addresses": [config["Interface"]["Address"]],
                    "mtu": int(config["Interface"]["MTU"]),
                },
                "peer": {
                    "publicKey": config["Peer"]["PublicKey"],
                    "endpoint": config["Peer"]["Endpoint"],
                    "allowedIPs": [config["Peer"]["AllowedIPs"]],
                },
                "probe": {"address": identity["gatewayIP"], "timeout": 10},
                "proxy": {"username": "agent", "password": "secret"},
                "hosts": {
                    name: service["address"]
                    for service in identity["services"]
                    for name in service["hostnames"]
                },
            },
        )

    @contextlib.contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """A TCP connection through the agent's proxy to the tool service."""
        secret = base64.b64encode(b"agent:secret").decode()
        with socket.create_connection(self.proxy, timeout=20) as through:
            through.sendall(
                f"CONNECT echo.lattice:7 HTTP/1.1\r\nHost: echo.lattice:7\r\n"
                f"Proxy-Authorization: Basic {secret}\r\n\r\n".encode()
            )
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = through.recv(1)
                assert byte, head
                head += byte
            assert b" 200 " in head.splitlines()[0], head
            yield through


def echoes(connection: socket.socket, word: bytes) -> bool:
    """Whether the word comes back; not when the connection is closed, reset or silent."""
    got = b""
    with contextlib.suppress(OSError):
        connection.sendall(word)
        while len(got) < len(word) and (data := connection.recv(len(word) - len(got))):
            got += data
    return got == word


@pytest.fixture
def tunnels(tmp_path: Path, echo: str) -> Iterator[Tunnels]:
    with (
        Fabric(tmp_path / "fabric", server_options={"gateway_wait": 15}) as fabric,
        EngineProcess.start_netstack() as engine,
    ):
        yield Tunnels(fabric, engine, echo)


def test_a_running_connection_outlives_gateway_daemon_and_control_plane(tunnels: Tunnels) -> None:
    fabric = tunnels.fabric
    engine = fabric.engine_pid
    with tunnels.connection() as connection:
        assert echoes(connection, b"all is well")
        fabric.kill_gateway_daemon()
        assert echoes(connection, b"the daemon is dead")
        with tunnels.connection() as new:
            assert echoes(new, b"new ones are let in")
        fabric.kill_server()
        assert echoes(connection, b"both are dead")
        fabric.start_server()
        fabric.start_gateway_daemon()
        assert fabric.engine_pid == engine
        assert echoes(connection, b"resynchronised")


def test_an_agents_connection_ends_with_its_identity(tunnels: Tunnels) -> None:
    fabric = tunnels.fabric
    (agent,) = (
        peer["peerId"]
        for peer in fabric.request("GET", "/api/v1/peers?workspaceId=dev")["items"]
        if peer["kind"] == "agent"
    )
    with tunnels.connection() as connection:
        assert echoes(connection, b"alive")
        fabric.request("DELETE", f"/api/v1/peers/{agent}")
        connection.settimeout(1)
        wait_for("silence", lambda: not echoes(connection, b"dead"))


def test_a_replaced_engine_serves_the_same_tunnels(tunnels: Tunnels) -> None:
    fabric = tunnels.fabric
    before = fabric.engine_pid
    fabric.kill_engine()
    wait_for("another engine", lambda: fabric.engine_pid != before)

    def proven(tunnel: str) -> bool:
        try:
            tunnels.engine.client.probe(tunnel, "10.96.0.1", timeout=2)
        except EngineError:
            return False
        return True

    wait_for("the service's tunnel", lambda: proven("service"), timeout=40)
    wait_for("the agent's tunnel", lambda: proven("agent"), timeout=40)
    with tunnels.connection() as connection:
        assert echoes(connection, b"again")
