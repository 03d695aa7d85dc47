"""Leave: how long after the end of an identity its packets still flow."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx

from benchmarks.fabrics import fabric
from benchmarks.report import Section, percentile
from lattice_engine import EngineClient
from lattice_sdk import LatticeAgent
from lattice_sdk.testing.gate import Gate
from lattice_server.fabric import Fabric

REQUEST = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"
SILENCE = 0.5  # seconds without a chunk, of which one comes every 5 ms, that are the end
# Of each kind, at once, and the life of those that expire, which leaves time to open them all.
SIZES = {"full": (100, 10, "4s"), "quick": (10, 10, "4s"), "tiny": (2, 2, "10s")}
LATE = (
    "what is late is who reads: the kernel has cut the flow, and its last bytes wait for a "
    "processor. It would take an idle one"
)
# Agents in processes of their own, of one that has imported what they need; all end with its input.
KILLED = """
import json, os, sys
import lattice_sdk.companion, lattice_sdk.enginehost, lattice_sdk.lifecycle
from lattice_sdk import LatticeAgent
from lattice_sdk.plugins import manager
manager()
settings, count = json.loads(sys.stdin.readline())
for _ in range(count):
    if not os.fork():
        agent = LatticeAgent(**settings).open()
        print(os.getpid(), agent.peer_id, flush=True)
        sys.stdin.read()
        sys.exit()
for _ in range(count):
    os.wait()
"""


def measure(size: str) -> Section:
    """DELETE, expiry, SIGKILL and a change of policy, each many times."""
    logging.getLogger("lattice").setLevel(logging.CRITICAL)  # that nobody renews is meant so
    section = Section("Leave: end → last byte")
    count, at_once, ttl = SIZES[size]
    with fabric() as (running, settings), httpx.Client() as admin:
        admin.headers["Authorization"] = f"Bearer {running.admin_token}"

        def many(once: Callable[[], list[float]]) -> list[float]:
            return [value for _ in range(count // at_once) for value in once()]

        deleted = many(lambda: after_delete(running, settings, admin, at_once))
        spread(section, "DELETE → last byte of a download", deleted, limit=50)
        expired = many(lambda: after_expiry(settings, at_once, ttl))
        spread(section, "expiry → last byte of a download", expired, limit=20)
        killed = many(lambda: after_kill(running, settings, admin, at_once))
        spread(section, "SIGKILL of the agent → peer gone at control plane and gateway", killed)
        changed = many(lambda: after_policy(running, settings, admin, at_once))
        spread(section, "a service is no longer designated → last byte of a download", changed)
    section.remarks.append(
        f"Leave: {at_once} agents at once. Requests to delete come one after another; of expiry, "
        "SIGKILL and policy all agents are cut off in one moment."
    )
    return section


def spread(section: Section, name: str, seconds: list[float], limit: float | None = None) -> None:
    """Median and 99th percentile; the target is for the latter."""
    values = [value * 1000 for value in seconds]
    section.add(f"{name}, p50 of {len(values)}", values, "ms")
    worst = percentile(values, 99)
    if limit is None:
        section.add(f"{name}, p99 of {len(values)}", worst, "ms")
    else:
        section.at_most(f"{name}, p99 of {len(values)}", worst, "ms", limit, note=LATE)


def download(agent: LatticeAgent, moved: Callable[[], None] | None = None) -> float:
    """Read until the connection is cut; the moment of its last byte on the monotonic clock.

    Raises:
        RuntimeError: it was cut before there was a byte.
    """
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
    if not last:
        raise RuntimeError("a download did not begin")
    return last


@contextlib.contextmanager
def downloading(
    settings: dict[str, Any], at_once: int
) -> Iterator[list[tuple[LatticeAgent, Future[float]]]]:
    """So many agents whose downloads flow, and what becomes of each one's last byte."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(at_once) as pool:
        agents = [stack.enter_context(LatticeAgent(**settings)) for _ in range(at_once)]
        flows = [threading.Event() for _ in agents]
        reading = [
            pool.submit(download, agent, event.set)
            for agent, event in zip(agents, flows, strict=True)
        ]
        for event in flows:
            if not event.wait(20):
                raise RuntimeError("a download did not begin")
        yield list(zip(agents, reading, strict=True))


def after_delete(
    running: Fabric, settings: dict[str, Any], admin: httpx.Client, at_once: int
) -> list[float]:
    """Seconds from the request until the last byte; 0 when that came before."""
    started = []
    with downloading(settings, at_once) as agents:
        for agent, _ in agents:
            started.append(time.monotonic())
            admin.delete(f"{running.url}/api/v1/peers/{agent.peer_id}").raise_for_status()
        ends = [reading.result() for _, reading in agents]
    return [max(0.0, end - start) for start, end in zip(started, ends, strict=True)]


def after_expiry(settings: dict[str, Any], at_once: int, ttl: str) -> list[float]:
    """Seconds from the deadline until the last byte, of some agents at once; negative if before."""
    with Gate(settings["server"]) as gate, contextlib.ExitStack() as stack:
        agents = [
            stack.enter_context(LatticeAgent(**{**settings, "server": gate.url, "ttl": ttl}))
            for _ in range(at_once)
        ]
        gate.close()  # no renewal comes through
        ends = [time.monotonic() + agent.remaining for agent in agents]
        with ThreadPoolExecutor(at_once) as pool:
            lasts = list(pool.map(download, agents))
        return [last - end for last, end in zip(lasts, ends, strict=True)]


def after_kill(
    running: Fabric, settings: dict[str, Any], admin: httpx.Client, at_once: int
) -> list[float]:
    """Seconds from SIGKILL until neither control plane nor gateway know the peer."""
    gateway = EngineClient(running.gateway_control)
    path = f"{running.url}/api/v1/peers?workspaceId={running.workspace}&limit=1000"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps([settings, at_once]) + "\n")
        parent.stdin.flush()
        agents = dict(reversed(parent.stdout.readline().split()) for _ in range(at_once))
        started = {}
        for peer, pid in agents.items():
            started[peer] = time.monotonic()
            os.kill(int(pid), signal.SIGKILL)
        gone: dict[str, float] = {}
        while len(gone) < len(started):
            known = {one["peerId"] for one in admin.get(path).raise_for_status().json()["items"]}
            known |= {one["id"] for one in gateway.peers()}
            now = time.monotonic()
            gone |= {peer: now for peer in started if peer not in known and peer not in gone}
            time.sleep(0.001)
    return [gone[peer] - began for peer, began in started.items()]


def after_policy(
    running: Fabric, settings: dict[str, Any], admin: httpx.Client, at_once: int
) -> list[float]:
    """Seconds from the request that takes a service off the list until each one's last byte."""
    path = f"{running.url}/api/v1/services/github-tools?workspaceId={running.workspace}"
    with downloading(settings, at_once) as agents:
        started = time.monotonic()
        admin.patch(path, json={"designated": False}).raise_for_status()
        ends = [reading.result() for _, reading in agents]
        admin.patch(path, json={"designated": True}).raise_for_status()
    return [max(0.0, end - started) for end in ends]
