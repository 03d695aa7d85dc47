"""The control plane under load: enrollments, renewals and deletions with many live peers."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.client import Load, drive, request
from benchmarks.fabrics import cpu_seconds, process, resident_mb, seconds_of
from benchmarks.report import Section
from lattice_server import fabric as fabric_module
from lattice_server.fabric import Fabric

OVERLAY = "10.96.0.0/13"  # room for 524,288 peers
# What is measured with the whole gateway, and with a stand-in for it: live peers. Requests are of
# the most clients and of a round; fewer clients have fewer.
SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "whole": (100, 10_000, 60_000),
        "alone": 100_000,
        "clients": (1, 8, 64),
        "requests": (1_400, 2_600),
        "least": 100,
        "rounds": 3,
        "idle": 3.0,
    },
    "quick": {
        "whole": (100,),
        "alone": 10_000,
        "clients": (1, 8, 64),
        "requests": (400, 400),
        "least": 40,
        "rounds": 2,
        "idle": 0.5,
    },
    "tiny": {
        "whole": (10,),
        "alone": 20,
        "clients": (1, 2),
        "requests": (6, 6),
        "least": 3,
        "rounds": 1,
        "idle": 0.1,
    },
}
ENROLL_LIMIT, RENEW_LIMIT, P99_LIMIT = 1000, 3000, 100
AIMED_AT = 100_000, 64  # live peers and clients
GATEWAY_SECONDS = 180.0  # for a gateway to take 60,000 peers, on a machine with other work
REASON = (
    "one thread of Python serves all of it, most of that HTTP; see "
    "docs/benchmarks.md#control-plane for its parts and what less would take"
)
NO_DATA_PLANE = "a stand-in for the gateway that acknowledges at once"


def measure(size: str) -> Section:
    """Rates and latencies by clients and by live peers, then start-up and resync."""
    section = Section("Control plane (SQLite)")
    section.remarks.append(
        "wireguard-go takes 65,536 peers, so that more than 60,000 are measured with "
        f"{NO_DATA_PLANE}: what is missing there is the engine's and the gateway daemon's share, "
        "which the rows before show."
    )
    options = SIZES[size]
    for peers in options["whole"]:
        _level(section, peers, options, whole=True)
    _level(section, options["alone"], options, whole=False)
    return section


def _level(section: Section, peers: int, options: dict[str, Any], *, whole: bool) -> None:
    """All rounds with so many live peers, with the whole gateway or its stand-in."""
    with (
        tempfile.TemporaryDirectory(prefix="lattice-bench-") as directory,
        contextlib.ExitStack() as stack,
    ):
        fabric = stack.enter_context(Fabric(Path(directory), server_options={"overlay": OVERLAY}))
        where = f"{peers} peers" if whole else f"{peers} peers, stand-in"
        _fill(fabric, peers)
        section.add(f"control plane's start, {where}", seconds_of(fabric.start_server), "s")
        join = fabric.start_gateway_daemon if whole else lambda: _stand_in(fabric, stack)
        section.add(f"gateway's full synchronisation, {where}", seconds_of(join), "s")
        if whole:
            fabric.kill_gateway_daemon()
            again = seconds_of(fabric.start_gateway_daemon)
            section.add(f"gateway's full synchronisation, {where}, engine kept", again, "s")
        most = options["clients"][-1]
        found: dict[tuple[int, str], list[tuple[Load, float]]] = {}
        for _ in range(options["rounds"]):
            for clients in options["clients"]:
                count = options["requests"][not whole] * clients // most
                count = max(options["least"], count)
                for name, load, spent in _rounds(fabric, clients, count, whole=whole):
                    found.setdefault((clients, name), []).append((load, spent))
        for (clients, name), rounds in found.items():
            _note(section, name, rounds, clients, where, aimed=(peers, clients) == AIMED_AT)
            if clients == most:
                spent = [one for _, one in rounds]
                section.add(f"processor time of each, {name}, {where}", spent, "µs")
                told = f"client's processor time of each, {name}, {where}"
                section.add(told, [load.client_us for load, _ in rounds], "µs")
            curve = section.curve("Requests a second", "live peers", "1/s")
            rate = statistics.median(load.rate for load, _ in rounds)
            curve.lines.setdefault(f"{name}, {clients} clients", []).append((peers, rate))
        _at_rest(section, fabric, where, options["idle"], whole=whole)


def _note(
    section: Section,
    name: str,
    rounds: list[tuple[Load, float]],
    clients: int,
    where: str,
    *,
    aimed: bool,
) -> None:
    limit = {"enrollments": ENROLL_LIMIT, "renewals": RENEW_LIMIT}.get(name)
    rates, worst = [load.rate for load, _ in rounds], [load.p99_ms for load, _ in rounds]
    label = f"{clients} client{'s' * (clients > 1)}, {where}"
    p99 = f"{name}, p99 of {len(rounds[0][0].latencies)}, {label}"
    if aimed and limit is not None:
        section.at_least(f"{name}/s, {label}", rates, "1/s", limit, note=REASON)
        section.at_most(p99, worst, "ms", P99_LIMIT, note=REASON)
    else:
        section.add(f"{name}/s, {label}", rates, "1/s")
        section.add(p99, worst, "ms")


def _at_rest(section: Section, fabric: Fabric, where: str, seconds: float, *, whole: bool) -> None:
    """What live peers cost while nobody asks anything, and what the reconciler takes."""
    processes = _processes(fabric, whole=whole)
    before = {name: cpu_seconds(pid) for name, pid in processes.items()}
    time.sleep(seconds)  # what is measured
    for name, pid in processes.items():
        share = (cpu_seconds(pid) - before[name]) / seconds * 100
        section.add(f"idle CPU of {name}, {where}", share, "% of a core")
        section.add(f"memory of {name}, {where}", resident_mb(pid), "MB")
    count, total = (_metric(fabric, f"lattice_reconciler_seconds_{of}") for of in ("count", "sum"))
    section.add(f"reconciler, mean of {count:.0f} passes, {where}", total / count * 1000, "ms")


def _metric(fabric: Fabric, name: str) -> float:
    text = httpx.get(f"{fabric.url}/metrics", trust_env=False).raise_for_status().text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def _processes(fabric: Fabric, *, whole: bool) -> dict[str, int]:
    found: dict[str, int | None] = {"control plane": fabric.server_pid}
    if whole:
        found |= {"gateway daemon": fabric.gateway_pid, "gateway engine": fabric.engine_pid}
    return {name: pid for name, pid in found.items() if pid is not None}


def _stand_in(fabric: Fabric, stack: contextlib.ExitStack) -> None:
    token = fabric.create_token(kind="gateway")
    command = [sys.executable, "-m", "benchmarks.standin", fabric.url, OVERLAY]
    environment = {"LATTICE_TOKEN": token}
    stack.enter_context(process(command, environment, cwd=Path(__file__).parent.parent))


def _rounds(
    fabric: Fabric, clients: int, requests: int, *, whole: bool
) -> Iterator[tuple[str, Load, float]]:
    """Enroll, renew and delete; with the processor time (µs) that each took of the fabric."""

    def spent() -> float:
        return sum(cpu_seconds(pid) for pid in _processes(fabric, whole=whole).values())

    def run(name: str, work: Iterator[bytes]) -> tuple[str, Load, float]:
        before = spent()
        load = drive(fabric.url, clients, work)
        return name, load, (spent() - before) / len(load.latencies) * 1e6

    enrolled = run("enrollments", _enrollments(fabric, requests))
    yield enrolled
    made = [
        (f"/api/v1/peers/{one['peerId']}", one["enrollmentToken"]) for one in enrolled[1].answers
    ]
    yield run("renewals", (request("POST", f"{path}/renew", own, b"{}") for path, own in made))
    yield run("deletions", (request("DELETE", path, own) for path, own in made))


def _enrollments(fabric: Fabric, count: int) -> Iterator[bytes]:
    for number in range(count):
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        body = {"agentName": f"load-{number}", "ttl": "1h", "publicKey": key}
        yield request(
            "POST", "/api/v1/agent-enroll", fabric.workspace_token, json.dumps(body).encode()
        )


def _fill(fabric: Fabric, count: int) -> None:
    """Have so many live peers, and control plane and gateway stopped.

    The rows are copies of one that was enrolled, written while the control plane is down: to
    enroll 100,000 would take longer than all the rest.
    """
    fabric_module.START_TIMEOUT = GATEWAY_SECONDS
    fabric.create_service("github-tools", [{"port": 443, "protocol": "tcp"}])
    drive(fabric.url, 1, _enrollments(fabric, 1))
    fabric.kill_gateway_daemon()
    engine = fabric.engine_pid
    if engine is not None:
        os.kill(engine, 9)
    fabric.kill_server()
    _copy_rows(next(fabric.directory.rglob("lattice.db")), count - 1)


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
