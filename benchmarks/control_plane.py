"""The control plane under load: enrollments, renewals and deletions with many live peers."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.fabrics import resident_mb, seconds_of
from benchmarks.report import Curve, Section, percentile

from lattice_server.fabric import Fabric

OVERLAY = "10.96.0.0/13"  # room for 524,288 peers
CLIENTS = (1, 8, 64)
ENROLL_LIMIT, RENEW_LIMIT, P99_LIMIT = 1000, 3000, 100


@dataclass
class Load:
    """What a run of requests came to."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    answers: list[dict[str, str]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latency."""
        return percentile(self.latencies, 99) * 1000


def measure(*, quick: bool) -> Section:
    """Rates and latencies by clients and by live peers, then start-up and resync."""
    section = Section("Control plane (SQLite)")
    levels = (100, 2_000) if quick else (100, 10_000, 100_000)
    requests = 300 if quick else 2_000
    lines: dict[str, list[tuple[float, float]]] = {}
    for peers in levels:
        with tempfile.TemporaryDirectory(prefix="lattice-bench-") as directory:
            fabric = Fabric(Path(directory), server_options={"overlay": OVERLAY})
            with fabric:
                started = _fill(fabric, peers)
                if peers == levels[-1]:
                    section.add(f"control plane's start with {peers} peers", started[0], "s")
                    section.add(f"gateway's resync of {peers} peers", started[1], "s")
                for clients in CLIENTS:
                    for name, load in asyncio.run(_rounds(fabric, clients, requests)).items():
                        _note(section, name, load, clients, peers, peers == levels[-1])
                        lines.setdefault(f"{name}, {clients} clients", []).append(
                            (peers, load.rate)
                        )
                for name, pid in _processes(fabric).items():
                    section.add(f"memory of {name}, {peers} peers", resident_mb(pid), "MB")
    section.curves.append(Curve("Requests a second", "live peers", "1/s", lines))
    return section


def _note(section: Section, name: str, load: Load, clients: int, peers: int, last: bool) -> None:
    label = f"{name}/s, {clients} clients, {peers} peers"
    limit = {"enrollments": ENROLL_LIMIT, "renewals": RENEW_LIMIT}.get(name)
    if last and clients == CLIENTS[-1] and limit is not None:
        section.at_least(label, load.rate, "1/s", limit)
        section.at_most(f"{label}, p99", load.p99_ms, "ms", P99_LIMIT)
    else:
        section.add(label, load.rate, "1/s")
        section.add(f"{label}, p99", load.p99_ms, "ms")


def _processes(fabric: Fabric) -> dict[str, int]:
    found = {
        "control plane": fabric.server_pid,
        "gateway daemon": fabric.gateway_pid,
        "gateway engine": fabric.engine_pid,
    }
    return {name: pid for name, pid in found.items() if pid is not None}


async def _rounds(fabric: Fabric, clients: int, requests: int) -> dict[str, Load]:
    enrolled = await drive(fabric.url, clients, _enrollments(fabric, requests))
    renewals = [
        request("POST", f"/api/v1/peers/{answer['peerId']}/renew", answer["enrollmentToken"], b"{}")
        for answer in enrolled.answers
    ]
    renewed = await drive(fabric.url, clients, iter(renewals))
    deletions = [
        request("DELETE", f"/api/v1/peers/{answer['peerId']}", answer["enrollmentToken"])
        for answer in enrolled.answers
    ]
    deleted = await drive(fabric.url, clients, iter(deletions))
    return {"enrollments": enrolled, "renewals": renewed, "deletions": deleted}


def _enrollments(fabric: Fabric, count: int) -> Iterator[bytes]:
    for number in range(count):
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        body = {"agentName": f"load-{number}", "ttl": "1h", "publicKey": key}
        yield request(
            "POST", "/api/v1/agent-enroll", fabric.workspace_token, json.dumps(body).encode()
        )


def request(method: str, path: str, token: str, body: bytes = b"") -> bytes:
    """A whole HTTP/1.1 request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


async def drive(url: str, clients: int, requests: Iterator[bytes]) -> Load:
    """Send requests over kept-alive connections, one at a time in each.

    Requests are made beforehand and answers are hardly looked at, so that the client costs little:
    it shares the machine with what it measures.

    Raises:
        RuntimeError: an answer is no success.
    """
    load, waiting = Load(), iter(list(requests))
    address = urlsplit(url)

    async def client() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for one in waiting:
            started = time.perf_counter()
            writer.write(one)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next((int(x[15:]) for x in lines if x.startswith(b"content-length:")), 0)
            body = await reader.readexactly(length) if length else b""
            load.latencies.append(time.perf_counter() - started)
            if not lines[0].startswith(b"http/1.1 2"):
                raise RuntimeError((head + body).decode(errors="replace"))
            if length:
                load.answers.append(json.loads(body))
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - started
    return load


def _fill(fabric: Fabric, count: int) -> tuple[float, float]:
    """Have so many live peers; seconds that control plane and gateway took to start with them.

    The rows are copies of one that was enrolled, written while the control plane is down: to
    enroll 100,000 would take longer than all the rest.
    """
    asyncio.run(drive(fabric.url, 1, _enrollments(fabric, 1)))
    fabric.kill_gateway_daemon()
    fabric.kill_server()
    database = next(fabric.directory.rglob("lattice.db"))
    _copy_rows(database, count - 1)
    server = seconds_of(fabric.start_server)
    gateway = seconds_of(fabric.start_gateway_daemon)
    return server, gateway


def _copy_rows(database: Path, count: int) -> None:
    connection = sqlite3.connect(database)
    connection.row_factory = sqlite3.Row
    with connection:
        model = dict(connection.execute("SELECT * FROM peers WHERE kind = 'agent'").fetchone())
        del model["n"]
        used = {row[0] for row in connection.execute("SELECT address FROM addresses")}
        free = _addresses(used)
        far = int((time.time() + 86_400) * 1000)
        fresh: dict[str, Callable[[int], object]] = {
            "id": lambda n: f"peer-copy{n:07d}",
            "name": lambda n: f"copy-{n}",
            "public_key": lambda _: base64.b64encode(secrets.token_bytes(32)).decode(),
            "token_hash": lambda _: secrets.token_hex(32),
            "expires_at": lambda _: far,
        }
        peers, addresses = [], []
        for number in range(count):
            row = model | {name: make(number) for name, make in fresh.items()}
            row["address"] = next(free)
            peers.append(tuple(row.values()))
            addresses.append((row["address"], row["id"]))
        columns = ", ".join(f'"{name}"' for name in model)
        places = ", ".join("?" * len(model))
        connection.executemany(f"INSERT INTO peers ({columns}) VALUES ({places})", peers)
        connection.executemany("INSERT INTO addresses (address, owner) VALUES (?, ?)", addresses)
    connection.close()


def _addresses(used: set[str]) -> Iterator[str]:
    for high in range(96, 104):
        for middle in range(256):
            for low in range(1, 255):
                address = f"10.{high}.{middle}.{low}"
                if address not in used and (high, middle) != (96, 0):
                    yield address
