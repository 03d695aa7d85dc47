"""What the kinds of network cost that a tunnel can end in, as one JSON object.

    python benchmarks/networks.py [--tunnels 20] [--megabytes 256]

Measures on the machine it runs on, against a real gateway in a namespace of its own:

* the keeper's start, a namespace, and a tunnel of each kind from the call to its proof;
* memory of engine and keeper for each further tunnel that has carried a little;
* one TCP connection's throughput, both ways, to a service whose end is a kernel socket in a
  namespace of its own (TUN where it can be opened), and the engine's processor time for each GB,
  which tells more where the machine does other things, too.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import platform
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lattice_engine import EngineProcess, namespace_socket

GATEWAY, SERVICE = "10.96.0.1", "10.96.0.7"
PORTS = {"download": 80, "upload": 81}
CHUNK = 256 * 1024


def key_pair() -> tuple[str, str]:
    """A private and a public key as ``wg`` prints them."""
    key = X25519PrivateKey.generate()
    raw = key.private_bytes_raw(), key.public_key().public_bytes_raw()
    return base64.b64encode(raw[0]).decode(), base64.b64encode(raw[1]).decode()


def resident_mb(pid: int) -> float:
    """Private resident memory in MB: what the process adds, without the binary it shares."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds(pid: int) -> float:
    """User and system time of the process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Fabric:
    """A gateway and what its peers are told."""

    def __init__(self, gateway: EngineProcess) -> None:
        self.gateway = gateway
        self.status = gateway.client.status()
        self.peers = 0

    def admit(self, address: str) -> str:
        """Let a new peer in that may reach the service; returns its private key."""
        private, public = key_pair()
        self.peers += 1
        grants = [{"to": SERVICE, "protocol": "tcp", "port": port} for port in PORTS.values()]
        peer = {"id": address, "publicKey": public, "address": address, "expiresIn": 3600.0}
        body = {"revision": self.peers, "upsert": [{**peer, "grants": grants}]}
        self.gateway.client.patch_state(body)
        return private

    def open(self, engine: EngineProcess, address: str, network: dict[str, str]) -> dict[str, Any]:
        """A tunnel of that address."""
        body = {
            "interface": {"privateKey": self.admit(address), "addresses": [f"{address}/32"]},
            "peer": {
                "publicKey": self.status["publicKey"],
                "endpoint": f"127.0.0.1:{self.status['listenPort']}",
                "allowedIPs": ["10.96.0.0/16"],
            },
            "probe": {"address": GATEWAY, "timeout": 20},
            "proxy": {"username": "agent", "password": "secret"},
            "network": network,
        }
        return engine.client.put_tunnel(address, body)


@contextlib.contextmanager
def fabric() -> Iterator[Fabric]:
    """A gateway with no peers."""
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory, "key")
        key.write_text(key_pair()[0])
        with EngineProcess.start_gateway(
            private_key_file=key, listen_port=0, address=f"{GATEWAY}/16", namespace="own"
        ) as gateway:
            yield Fabric(gateway)


def serve(made: dict[str, Any]) -> None:
    """Endless bytes on one port, a sink that says when it has seen the end on the other."""

    def download(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while True:
                connection.sendall(bytes(CHUNK))

    def upload(connection: socket.socket) -> None:
        buffer = bytearray(CHUNK)
        with contextlib.suppress(OSError), connection:
            while connection.recv_into(buffer):
                pass
            connection.sendall(b"x")

    def accept(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    for name, handle in (("download", download), ("upload", upload)):
        listener = namespace_socket(made["network"]["sockets"])
        listener.bind((SERVICE, PORTS[name]))
        listener.listen()
        threading.Thread(target=accept, args=(listener, handle), daemon=True).start()


def connect(made: dict[str, Any], port: int) -> socket.socket:
    """A connection to the service by whatever the tunnel's kind offers."""
    if made["network"]["sockets"] is not None:
        connection = namespace_socket(made["network"]["sockets"])
        connection.settimeout(30)
        connection.connect((SERVICE, port))
        return connection
    proxy = made["proxy"]
    connection = socket.create_connection((proxy["host"], proxy["port"]), 30)
    secret = base64.b64encode(b"agent:secret").decode()
    head = f"CONNECT {SERVICE}:{port} HTTP/1.1\r\nHost: {SERVICE}:{port}\r\n"
    connection.sendall(f"{head}Proxy-Authorization: Basic {secret}\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(1)
    if b" 200 " not in answer:
        raise RuntimeError(answer.decode())
    return connection


def throughput(made: dict[str, Any], pid: int, megabytes: int) -> dict[str, float]:
    """Mbit/s of one connection each way, and what it costs the engine."""
    buffer, wanted = bytearray(CHUNK), megabytes * 1024 * 1024
    with connect(made, PORTS["download"]) as connection:
        started, before, received = time.perf_counter(), cpu_seconds(pid), 0
        while received < wanted:
            received += connection.recv_into(buffer)
        down = received / (time.perf_counter() - started)
        down_cpu = (cpu_seconds(pid) - before) / received
    with connect(made, PORTS["upload"]) as connection:
        started, before = time.perf_counter(), cpu_seconds(pid)
        for _ in range(wanted // CHUNK):
            connection.sendall(buffer)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        up = wanted / (time.perf_counter() - started)
        up_cpu = (cpu_seconds(pid) - before) / wanted
    return {
        "down_mbit_s": round(down * 8 / 1e6),
        "down_engine_s_per_gb": round(down_cpu * 1e9, 1),
        "up_mbit_s": round(up * 8 / 1e6),
        "up_engine_s_per_gb": round(up_cpu * 1e9, 1),
    }


def tunnels(place: Fabric, network: dict[str, str], third: int, count: int) -> dict[str, Any]:
    """Times and memory of tunnels of one kind."""
    with EngineProcess.start_netstack() as engine:
        times, first = [], 0.0
        memory: tuple[float, float] = (0.0, 0.0)
        keeper = None
        for n in range(count + 1):
            started = time.perf_counter()
            made = place.open(engine, f"10.96.{third}.{n + 1}", network)
            times.append(time.perf_counter() - started)
            if made["network"]["namespace"] is not None:
                keeper = made["network"]["namespace"]["pid"]
            with connect(made, PORTS["download"]) as connection:
                for _ in range(4):
                    connection.recv(CHUNK)
            if n == 0:
                first = times.pop()
                memory = (resident_mb(engine.pid), resident_mb(keeper) if keeper else 0.0)
        engine_more = (resident_mb(engine.pid) - memory[0]) / count
        keeper_more = (resident_mb(keeper) - memory[1]) / count if keeper else 0.0
        return {
            "device": made["network"]["device"],
            "first_ms": round(first * 1000, 1),
            "further_ms": round(statistics.median(times) * 1000, 1),
            "engine_mb": round(memory[0], 1),
            "engine_mb_per_further": round(engine_more, 2),
            "keeper_mb": round(memory[1], 1),
            "keeper_mb_per_further": round(keeper_more, 2),
        }


def namespaces(rounds: int) -> dict[str, float]:
    """What the keeper's start takes, and a namespace with its device and end."""

    def once(engine: EngineProcess) -> float:
        started = time.perf_counter()
        if not engine.client.networks()["namespace"]["able"]:
            raise RuntimeError("this machine has no network namespaces for this user")
        return time.perf_counter() - started

    starts, further = [], []
    for _ in range(rounds):
        with EngineProcess.start_netstack() as engine:
            first = once(engine)
            further += [once(engine) for _ in range(3)]
            starts.append(first - statistics.median(further))
    return {
        "keeper_start_ms": round(statistics.median(starts) * 1000, 1),
        "namespace_ms": round(statistics.median(further) * 1000, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tunnels", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=256)
    options = parser.parse_args()
    kinds = {
        "netstack": {"kind": "netstack"},
        "namespace_packet": {"kind": "namespace", "device": "packet"},
    }
    if os.access("/dev/net/tun", os.R_OK | os.W_OK):
        kinds["namespace_tun"] = {"kind": "namespace", "device": "tun"}
    result: dict[str, Any] = {
        "machine": {"kernel": platform.release(), "cores": os.cpu_count(), "user": os.getuid()}
    }
    result |= namespaces(10)
    with fabric() as place, EngineProcess.start_netstack() as other:
        result["gateway_device"] = place.status["device"]
        serve(place.open(other, SERVICE, {"kind": "namespace"}))
        for third, (name, network) in enumerate(kinds.items(), start=1):
            result[name] = tunnels(place, network, third, options.tunnels)
            with EngineProcess.start_netstack() as engine:
                made = place.open(engine, f"10.96.{third}.250", network)
                result[name] |= throughput(made, engine.pid, options.megabytes)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
