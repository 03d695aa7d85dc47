"""What the policy says, told a second time, and the real tunnels to compare it with.

The model shares no code with the policy compiler: it is the page `docs/concepts.md` as Python.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lattice_engine import EngineProcess
from lattice_server.fabric import Fabric
from support.machine import own_address

# Where every agent listens; services do on some of them.
PORTS = (("tcp", 80), ("tcp", 443), ("udp", 53))
BUILT_IN = {
    "sandboxed": ({"services"}, set[str]()),
    "coordinator": ({"services", "agents"}, {"agents"}),
    "isolated": ({"allow"}, set[str]()),
}
Words = dict[str, tuple[set[str], set[str]]]
SECRET = "secret"
# What proxies said, for whoever looks at a failure.
REFUSALS: dict[Flow, str] = {}


@dataclass(eq=False)
class Service:
    """A tool service that is connected."""

    workspace: str
    name: str
    address: str
    ports: set[tuple[str, int]]
    designated: bool
    gone: bool = False


@dataclass(eq=False)
class Agent:
    """An agent with a tunnel of its own.

    Attributes:
        allow: by what it was written, protocol and port.
        at: where it may be seen to lead: overlay address, network or name, protocol and port.
    """

    workspace: str
    peer: str
    token: str
    preset: str
    address: str
    proxy: tuple[str, int]
    names: dict[str, str]
    allow: list[tuple[str, str, int]] = field(default_factory=list)
    parent: Agent | None = None
    gone: bool = False

    def line(self) -> Iterator[Agent]:
        """It, and whom it comes from by delegation."""
        yield self
        if self.parent is not None:
            yield from self.parent.line()


@dataclass(frozen=True)
class Flow:
    """An attempt of an agent."""

    source: Agent
    to: str
    protocol: str
    port: int

    def __repr__(self) -> str:
        return (
            f"{self.source.preset} {self.source.address} -> {self.to}:{self.port}/{self.protocol}"
        )


@dataclass
class Model:
    """The state of all workspaces, as the API was told it."""

    presets: dict[str, Words]
    services: list[Service] = field(default_factory=list)
    agents: list[Agent] = field(default_factory=list)
    networks: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def allows(self, flow: Flow) -> bool:
        """Whether the flow is to pass, now."""
        if flow.source.gone:
            return False
        to = self.names.get(flow.to, flow.to)
        # A sub-agent has no more than those that it comes from; it may call them back.
        return all(
            self._own(who, to, flow) or (who is not flow.source and to == who.address)
            for who in flow.source.line()
        )

    def _own(self, agent: Agent, to: str, flow: Flow) -> bool:
        egress = self.words(agent)[0]
        wish = (flow.protocol, flow.port)
        listed = (to, *wish) in agent.allow and "allow" in egress
        for service in self.services:
            if service.gone or service.workspace != agent.workspace or service.address != to:
                continue
            named = (f"{service.name}.lattice", *wish) in agent.allow and "allow" in egress
            uses = "services" in egress and service.designated
            uses = uses or f"service:{service.name}" in egress
            return wish in service.ports and (uses or listed or named)
        for other in self.agents:
            if other.gone or other.workspace != agent.workspace or other.address != to:
                continue
            accepts = all("agents" in self.words(one)[1] for one in other.line())
            return other is not agent and accepts and ("agents" in egress or listed)
        return "allow" in egress and self._beyond(agent, to, wish)

    def _beyond(self, agent: Agent, to: str, wish: tuple[str, int]) -> bool:
        """What connectors reach: host names at their addresses, networks at their own."""
        for name, address in agent.names.items():
            if address == to and (name, *wish) in agent.allow:
                return True
        network = self.networks.get(agent.workspace)
        for text, protocol, port in agent.allow:
            if network is None or (protocol, port) != wish or not text[0].isdigit():
                continue
            asked = IPv4Network(text)
            inside = IPv4Network(to).subnet_of(asked)
            if inside and asked.subnet_of(IPv4Network(network)):
                return True
        return False

    def words(self, agent: Agent) -> tuple[set[str], set[str]]:
        """Egress and ingress of an agent's preset; of one that was taken away, nothing."""
        known = BUILT_IN | self.presets.get(agent.workspace, {})
        return known.get(agent.preset, (set(), set()))

    def living(self) -> list[Agent]:
        """The agents that have not ended."""
        return [agent for agent in self.agents if not agent.gone]

    def end(self, agent: Agent) -> None:
        """An agent ends, and all that come from it."""
        agent.gone = True
        for other in self.agents:
            if other.parent is agent and not other.gone:
                self.end(other)


class Echo(socketserver.BaseRequestHandler):
    """Tells who calls, as far as a PROXY line says it, and then sends back what it gets."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            line = self._line()
            if line.startswith(b"PROXY"):
                caller = line.split()[2]
                self._line()
            else:
                caller = b"-"
            self.request.sendall(caller + b"\n")
            while data := self.request.recv(4096):
                self.request.sendall(data)

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n") and (byte := self.request.recv(1)):
            line += byte
        return line


class Datagrams(socketserver.BaseRequestHandler):
    """Sends back a datagram."""

    def handle(self) -> None:
        data, out = self.request
        out.sendto(data, self.client_address)


@contextlib.contextmanager
def targets() -> Iterator[dict[str, tuple[str, int]]]:
    """Servers on this machine, by name: ``tcp`` and ``udp`` on loopback, ``network`` beside it."""
    with contextlib.ExitStack() as stack:
        found: dict[str, tuple[str, int]] = {}
        for name, host, kind, handler in (
            ("tcp", "127.0.0.1", socketserver.ThreadingTCPServer, Echo),
            ("udp", "127.0.0.1", socketserver.ThreadingUDPServer, Datagrams),
            ("network", own_address(), socketserver.ThreadingTCPServer, Echo),
        ):
            server = stack.enter_context(kind((host, 0), handler))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.shutdown)
            found[name] = (host, server.server_address[1])
        yield found


class Tunnels:
    """Tunnels of agents and services, in one engine."""

    def __init__(
        self, fabric: Fabric, engine: EngineProcess, servers: dict[str, tuple[str, int]]
    ) -> None:
        self.fabric, self.engine, self.servers = fabric, engine, servers
        self.http = httpx.Client(base_url=fabric.url, timeout=30, trust_env=False)

    def call(self, method: str, path: str, token: str, body: Any = None) -> httpx.Response:
        """A call of the API."""
        headers = {"Authorization": f"Bearer {token}"}
        return self.http.request(method, path, json=body, headers=headers)

    def open(self, answer: dict[str, Any], key: X25519PrivateKey) -> tuple[str, int]:
        """A tunnel that listens on every port; where its proxy is."""
        config = configparser.ConfigParser()
        config.read_string(answer["wireguardConfig"])
        peer = config["Peer"]
        body = {
            "interface": {
                "privateKey": private(key),
                "addresses": [config["Interface"]["Address"]],
            },
            "peer": {
                "publicKey": peer["PublicKey"],
                "endpoint": peer["Endpoint"],
                "allowedIPs": [one.strip() for one in peer["AllowedIPs"].split(",")],
            },
            "probe": {"address": answer["gatewayIP"], "timeout": 10},
            "proxy": {"username": "truth", "password": SECRET},
            "hosts": {n: s["address"] for s in answer["services"] for n in s["hostnames"]},
        }
        made = self.engine.client.put_tunnel(answer["peerId"], body)
        for protocol, port in PORTS:
            host, number = self.servers[protocol]
            wanted = {"listenPort": port, "protocol": protocol, "target": f"{host}:{number}"}
            if protocol == "tcp":
                wanted["proxyProtocol"] = "v1"
            self.engine.client.add_forward(answer["peerId"], wanted)
        return made["proxy"]["host"], int(made["proxy"]["port"])

    def close(self) -> None:
        """Close the connections to the control plane."""
        self.http.close()


def public(key: X25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def private(key: X25519PrivateKey) -> str:
    return base64.b64encode(key.private_bytes_raw()).decode()


def passes(flow: Flow, expected: bool) -> bool:
    """Whether the flow passes: real packets, through the agent's tunnel and the gateway.

    ``expected`` only says how long to wait for the answer to a datagram, which may be none.
    """
    if flow.protocol == "udp":
        return _datagram_passes(flow, 10.0 if expected else 0.14)
    stream = connect(flow)
    if stream is not None:
        stream.close()
    return stream is not None


def connect(flow: Flow) -> socket.socket | None:
    """A connection that has been greeted; ``None`` where it was refused.

    Raises:
        AssertionError: it was neither connected nor refused at once, or somebody else is seen.
    """
    # Whom the gateway does not know any more is not answered at all.
    stream = socket.create_connection(flow.source.proxy, 0.4 if flow.source.gone else 10)
    pair = base64.b64encode(f"truth:{SECRET}".encode()).decode()
    target = f"{flow.to}:{flow.port}"
    stream.sendall(
        f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
        f"Proxy-Authorization: Basic {pair}\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        try:
            byte = stream.recv(1)
        except TimeoutError:
            stream.close()
            assert flow.source.gone, f"{flow}: neither connected nor refused"
            return None
        assert byte, f"{flow}: the proxy hung up after {head!r}"
        head += byte
    status = int(head.split()[1])
    if status != 200:
        stream.settimeout(1)
        with contextlib.suppress(OSError):
            head += stream.recv(4096)
        REFUSALS[flow] = head.decode(errors="replace")
        stream.close()
        assert status in (403, 502), f"{flow}: {head!r} is no refusal at once"
        return None
    stream.sendall(b"hello\n")
    caller = b""
    while not caller.endswith(b"\n"):
        byte = stream.recv(1)
        assert byte, f"{flow}: connected and then not served"
        caller += byte
    assert caller.strip().decode() in ("-", flow.source.address), f"{flow}: seen as {caller!r}"
    return stream


def alive(stream: socket.socket, patience: float) -> bool:
    """Whether what is sent comes back."""
    stream.settimeout(patience)
    try:
        stream.sendall(b"x")
        return stream.recv(1) == b"x"
    except OSError:
        return False


def _datagram_passes(flow: Flow, patience: float) -> bool:
    """RFC 1928, UDP ASSOCIATE: whether an answer comes back in so many seconds."""
    with socket.create_connection(flow.source.proxy, timeout=10) as control:
        control.sendall(b"\x05\x01\x02")
        assert control.recv(2) == b"\x05\x02"
        name, password = b"truth", SECRET.encode()
        control.sendall(b"\x01" + bytes([len(name)]) + name + bytes([len(password)]) + password)
        assert control.recv(2) == b"\x01\x00"
        control.sendall(b"\x05\x03\x00\x01\0\0\0\0\0\0")
        reply = control.recv(10)
        assert reply[1] == 0, reply
        relay = (socket.inet_ntoa(reply[4:8]), struct.unpack("!H", reply[8:10])[0])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.settimeout(patience / 2)
            head = b"\0\0\0\x01" + socket.inet_aton(flow.to) + struct.pack("!H", flow.port)
            for _ in range(2):  # a first datagram may be lost on the way
                datagrams.sendto(head + b"ping", relay)
                with contextlib.suppress(OSError):
                    if datagrams.recv(2048).endswith(b"ping"):
                        return True
    return False
