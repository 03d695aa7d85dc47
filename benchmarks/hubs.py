"""What two ends of a tunnel meet at: the gateway with its policy, or wireguard-go alone."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import rawgo
from benchmarks.rawgo import key_pair
from lattice_engine import EngineProcess, namespace_socket
from lattice_server.ports import free_port

SECRET = "YWdlbnQ6c2VjcmV0"  # agent:secret, of each userspace proxy
GRANTS_EACH = 100  # of a peer that is there for its grants alone


@dataclass
class Hub:
    """A hub that admits ends.

    Attributes:
        network: its overlay, the first two bytes.
        public: its key.
        port: of its UDP socket on loopback.
        pid: process id, of whose CPU time is asked.
        tell: makes it know all peers: address → public key.
    """

    network: str
    public: str
    port: int
    pid: int
    tell: Callable[[dict[str, str]], None]
    peers: dict[str, str] = field(default_factory=dict)

    @property
    def own(self) -> str:
        """Its overlay address."""
        return f"{self.network}.0.1"

    def admit(self, address: str) -> str:
        """Let an end in; its private key."""
        private, public = key_pair()
        self.peers[address] = public
        self.tell(self.peers)
        return private

    def open(self, engine: EngineProcess, last: int, network: dict[str, str]) -> End:
        """An end of the overlay, made by an engine of ours."""
        address = f"{self.network}.0.{last}"
        body: dict[str, Any] = {
            "interface": {"privateKey": self.admit(address), "addresses": [f"{address}/32"]},
            "peer": {
                "publicKey": self.public,
                "endpoint": f"127.0.0.1:{self.port}",
                "allowedIPs": [f"{self.network}.0.0/16"],
                "persistentKeepalive": 25,
            },
            "probe": {"address": self.own, "timeout": 20},
            "network": network,
        }
        if network["kind"] == "netstack":
            body["proxy"] = {"username": "agent", "password": "secret"}
        return End(address, engine, engine.client.put_tunnel(address, body))


@dataclass
class End:
    """One end of a tunnel."""

    address: str
    engine: EngineProcess
    made: dict[str, Any]

    def connect(self, to: str, port: int) -> socket.socket:
        """A connection through the tunnel, by whatever its kind offers."""
        if (sockets := self.made["network"]["sockets"]) is not None:
            connection = namespace_socket(sockets)
            connection.settimeout(20)
            connection.connect((to, port))
        else:
            proxy = self.made["proxy"]
            connection = by_connect((proxy["host"], proxy["port"]), to, port, SECRET)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def listen(self, port: int) -> socket.socket:
        """A listener on its address, of the kernel."""
        listener = namespace_socket(self.made["network"]["sockets"])
        listener.bind((self.address, port))
        listener.listen(128)
        return listener

    def forward(self, port: int, target: int) -> None:
        """Hand on what comes to a port of its address to a port of loopback."""
        body = {"listenPort": port, "target": f"127.0.0.1:{target}"}
        self.engine.client.add_forward(self.address, body)

    @property
    def within(self) -> tuple[str, ...]:
        """What comes before a command that runs in its network namespace."""
        found = self.made["network"]["namespace"]
        if found is None:
            return ()
        namespaces = (f"--user={found['user']}", f"--net={found['net']}")
        return ("nsenter", *namespaces, "--preserve-credentials")


def by_connect(proxy: tuple[str, int], to: str, port: int, secret: str = "") -> socket.socket:
    """A connection by an HTTP proxy (RFC 9110, 9.3.6)."""
    connection = socket.create_connection(proxy, 20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = f"CONNECT {to}:{port} HTTP/1.1\r\nHost: {to}:{port}\r\n"
    head += f"Proxy-Authorization: Basic {secret}\r\n" if secret else ""
    connection.sendall(f"{head}\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        more = connection.recv(1)
        if not more:
            raise RuntimeError("the proxy closed the connection")
        answer += more
    if b" 200 " not in answer:
        raise RuntimeError(answer.decode())
    return connection


class Gateway(Hub):
    """The gateway: each of its ends may reach each other, and others' grants are loaded beside."""

    def load(self, grants: int) -> None:
        """Have so many grants, those of others."""
        self.others = _others(self.network, max(0, grants - len(self.peers) ** 2))
        self._put()

    others: list[dict[str, Any]] = []  # noqa: RUF012 - replaced, never changed
    revision = 0
    client: Any = None

    def _put(self) -> None:
        def may_reach(address: str) -> list[dict[str, Any]]:
            return [
                {"to": other, "protocol": "any", "port": 0}
                for other in self.peers
                if other != address
            ]

        mine = [_peer(address, key, may_reach(address)) for address, key in self.peers.items()]
        self.revision += 1
        self.client.put_state({"revision": self.revision, "upsert": mine + self.others})


def _peer(address: str, key: str, grants: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": address,
        "publicKey": key,
        "address": address,
        "expiresIn": 7200.0,
        "grants": grants,
    }


def _others(network: str, grants: int) -> list[dict[str, Any]]:
    """Peers whom nobody hears of, with grants to one another."""
    count = -(-grants // GRANTS_EACH)
    addresses = [f"{network}.{100 + n // 250}.{1 + n % 250}" for n in range(count)]
    peers = []
    for n, address in enumerate(addresses):
        to = addresses[(n + 1) % count]
        wanted = min(GRANTS_EACH, grants - n * GRANTS_EACH)
        granted = [{"to": to, "protocol": "tcp", "port": 1000 + i} for i in range(wanted)]
        peers.append(_peer(address, key_pair()[1], granted))
    return peers


@contextlib.contextmanager
def gateway(network: str) -> Iterator[tuple[Gateway, str]]:
    """The gateway in a network namespace of its own, and the kind of its device."""
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory, "key")
        key.write_text(key_pair()[0])
        with EngineProcess.start_gateway(
            private_key_file=key, listen_port=0, address=f"{network}.0.1/16", namespace="own"
        ) as engine:
            status = engine.client.status()
            hub = Gateway(
                network, status["publicKey"], status["listenPort"], engine.pid, lambda _: None
            )
            hub.client = engine.client
            hub.tell = lambda _: hub._put()
            yield hub, status["device"]


@contextlib.contextmanager
def plain(program: Path, network: str) -> Iterator[Hub]:
    """wireguard-go as a hub: it routes between its peers and asks nobody."""
    private, public = key_pair()
    port = free_port()
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    with rawgo.running(program, "hub0", f"{network}.0.1/16") as pid:

        def tell(peers: dict[str, str]) -> None:
            allowed = {key: (f"{address}/32", "") for address, key in peers.items()}
            rawgo.configure("hub0", private, port, allowed)

        tell({})
        yield Hub(network, public, port, pid, tell)


@contextlib.contextmanager
def direct(program: Path, network: str) -> Iterator[tuple[tuple[str, ...], str, tuple[int, int]]]:
    """wireguard-go here and in a namespace beside, over a pair of wires.

    Yields what comes before a command there, the address there, and the process ids of both.
    """
    keys = {"here": key_pair(), "there": key_pair()}
    with subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) as beside:
        within = ("nsenter", "--net", "--target", str(beside.pid))
        try:
            _wait_for_namespace(beside.pid)
            pair = ["link", "add", "pair0", "type", "veth", "peer", "pair1"]
            subprocess.run(["ip", *pair], check=True)
            subprocess.run(["ip", "link", "set", "pair1", "netns", str(beside.pid)], check=True)
            for place, name, address in (((), "pair0", 1), (within, "pair1", 2)):
                add = ["ip", "address", "add", f"192.168.77.{address}/24", "dev", name]
                subprocess.run([*place, *add], check=True)
                subprocess.run([*place, "ip", "link", "set", name, "up"], check=True)
            with (
                rawgo.running(program, "raw0", f"{network}.0.1/16") as here,
                rawgo.running(program, "raw1", f"{network}.0.2/16", within=within) as other,
            ):
                ports = free_port(), free_port()
                rawgo.configure(
                    "raw0",
                    keys["here"][0],
                    ports[0],
                    {keys["there"][1]: (f"{network}.0.2/32", f"192.168.77.2:{ports[1]}")},
                )
                rawgo.configure(
                    "raw1",
                    keys["there"][0],
                    ports[1],
                    {keys["here"][1]: (f"{network}.0.1/32", f"192.168.77.1:{ports[0]}")},
                )
                yield within, f"{network}.0.2", (here, other)
        finally:
            beside.terminate()


def _wait_for_namespace(pid: int) -> None:
    mine = Path("/proc/self/ns/net").readlink()
    while Path(f"/proc/{pid}/ns/net").readlink() == mine:
        pass
