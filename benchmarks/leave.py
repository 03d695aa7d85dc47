"""Leave: how long after the end of an identity its packets still flow."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from benchmarks.fabrics import fabric
from benchmarks.report import Section, percentile
from lattice_sdk import LatticeAgent
from lattice_sdk.testing.gate import Gate
from lattice_server.fabric import Fabric

REQUEST = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"
TTL = "4s"
SILENCE = 0.5  # seconds without a chunk, of which one comes every 5 ms, that are the end
SIZES = {"full": (100, 10, 25), "quick": (10, 10, 5), "tiny": (1, 1, 1)}
LATE = (
    "what is late is who reads: the kernel has cut the flow, and its last bytes wait for a "
    "processor. It would take an idle one"
)
KILLED = """
import json, sys, threading
from lattice_sdk import LatticeAgent
agents = [LatticeAgent(**json.loads(sys.stdin.readline())).open()]
print(agents[0].peer_id, flush=True)
threading.Event().wait()
"""


def measure(size: str) -> Section:
    """DELETE, expiry, SIGKILL and a change of policy, each many times."""
    section = Section("Leave: end → last byte")
    count, at_once, fewer = SIZES[size]
    with fabric() as (running, settings), httpx.Client() as admin:
        admin.headers["Authorization"] = f"Bearer {running.admin_token}"
        deleted = [after_delete(running, settings, admin) for _ in range(count)]
        spread(section, "DELETE → last byte of a download", deleted, limit=50)
        expired = [
            value for _ in range(count // at_once) for value in after_expiry(settings, at_once)
        ]
        spread(section, "expiry → last byte of a download", expired, limit=20)
        killed = [after_kill(running, settings, admin) for _ in range(fewer)]
        spread(section, "SIGKILL of the agent → peer gone at control plane and gateway", killed)
        changed = [after_policy(running, settings, admin) for _ in range(fewer)]
        spread(section, "a service is no longer designated → last byte of a download", changed)
    return section


def spread(section: Section, name: str, seconds: list[float], limit: float | None = None) -> None:
    """Median and 99th percentile; the target is for the latter."""
    values = [value * 1000 for value in seconds]
    section.add(f"{name}, p50 of {len(values)}", values, "ms")
    worst = percentile(values, 99)
    if limit is None:
        section.add(f"{name}, p99", worst, "ms")
    else:
        section.at_most(f"{name}, p99", worst, "ms", limit, note=LATE)


def download(agent: LatticeAgent, moved: Callable[[], None] | None = None) -> float:
    """Read until the connection is cut; the moment of its last byte on the monotonic clock."""
    with agent.connect("github-tools.lattice", 80) as stream:
        stream.settimeout(SILENCE)
        stream.sendall(REQUEST)
        last = 0.0
        with contextlib.suppress(OSError):
            while stream.recv(65536):
                last = time.monotonic()
                if moved is not None:
                    moved()
                    moved = None
    return last


def after_delete(running: Fabric, settings: dict[str, Any], admin: httpx.Client) -> float:
    """Seconds from the request until the last byte; 0 when that came before."""
    flows = threading.Event()
    with LatticeAgent(**settings) as agent, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(download, agent, flows.set)
        flows.wait(20)
        started = time.monotonic()
        admin.delete(f"{running.url}/api/v1/peers/{agent.peer_id}").raise_for_status()
        return max(0.0, reading.result() - started)


def after_expiry(settings: dict[str, Any], at_once: int) -> list[float]:
    """Seconds from the deadline until the last byte, of some agents at once; negative if before."""
    with Gate(settings["server"]) as gate, contextlib.ExitStack() as stack:
        agents = [
            stack.enter_context(LatticeAgent(**{**settings, "server": gate.url, "ttl": TTL}))
            for _ in range(at_once)
        ]
        ends = [time.monotonic() + agent.remaining for agent in agents]
        gate.close()  # no renewal comes through
        with ThreadPoolExecutor(at_once) as pool:
            lasts = list(pool.map(download, agents))
        return [last - end for last, end in zip(lasts, ends, strict=True)]


def after_kill(running: Fabric, settings: dict[str, Any], admin: httpx.Client) -> float:
    """Seconds from SIGKILL until neither control plane nor gateway know the peer."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()
        peer = process.stdout.readline().strip()
        started = time.monotonic()
        process.kill()
        while admin.get(f"{running.url}/api/v1/peers/{peer}").status_code != 404:
            time.sleep(0.001)
        return time.monotonic() - started


def after_policy(running: Fabric, settings: dict[str, Any], admin: httpx.Client) -> float:
    """Seconds from the request that takes a service off the list until the last byte."""
    path = f"{running.url}/api/v1/services/github-tools?workspaceId={running.workspace}"
    flows = threading.Event()
    with LatticeAgent(**settings) as agent, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(download, agent, flows.set)
        flows.wait(20)
        started = time.monotonic()
        admin.patch(path, json={"designated": False}).raise_for_status()
        last = reading.result()
        admin.patch(path, json={"designated": True}).raise_for_status()
        return max(0.0, last - started)
