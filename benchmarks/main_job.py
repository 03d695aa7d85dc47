"""The figures of the main job, as one JSON object.

    python -m benchmarks.main_job [--rounds 30] [--peers 10000] [--agents 20] [--idle 65]

Measures on the machine it runs on, against the real control plane, gateway and engine:

* enroll to first byte of a designated service through the tunnel: cold (no engine yet) and warm;
* resident memory of the engine with one agent and for each further one;
* ``import lattice_sdk`` in a fresh interpreter, beside the bare interpreter;
* what 10,000 live peers cost the control plane, its reconciler and the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import platform
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx

from benchmarks import join
from benchmarks.fabrics import cpu_seconds, fabric, resident_mb, seconds_of
from benchmarks.join import first_byte
from benchmarks.report import summary
from lattice_server.fabric import Fabric


def import_times(rounds: int = 7) -> dict[str, float]:
    """Wall time of an interpreter that imports the SDK, beside one that imports nothing."""

    def run(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    bare = statistics.median(run("pass") for _ in range(rounds))
    face = statistics.median(run("import lattice_sdk") for _ in range(rounds))
    used = statistics.median(run("from lattice_sdk import LatticeAgent") for _ in range(rounds))
    return {
        "bare_ms": round(bare * 1000, 1),
        "import_lattice_sdk_ms": round((face - bare) * 1000, 1),
        "import_LatticeAgent_ms": round((used - bare) * 1000, 1),
    }


def engine_memory(settings: dict[str, Any], agents: int) -> dict[str, float]:
    """Resident memory of the engine with one agent that has worked, and with many."""
    from lattice_sdk import LatticeAgent

    with contextlib.ExitStack() as stack:

        def enter(number: int) -> int:
            agent = stack.enter_context(
                LatticeAgent(**{**settings, "agent_name": f"memory-{number}"})
            )
            with agent.http_client() as http:
                http.get("http://github-tools.lattice/").raise_for_status()
            pid = agent.engine_pid
            assert pid is not None
            return pid

        pid = enter(0)
        one = resident_mb(pid)
        for number in range(1, agents):
            enter(number)
        many = resident_mb(pid)
    return {
        "one_agent_mb": round(one, 1),
        "agents": agents,
        "all_agents_mb": round(many, 1),
        "each_further_mb": round((many - one) / (agents - 1), 2),
    }


async def enroll_many(running: Fabric, count: int, clients: int = 16) -> dict[str, float]:
    """Enroll peers that nobody drives, over the API."""
    numbers = iter(range(count))
    latencies: list[float] = []

    async def client_loop(client: httpx.AsyncClient) -> None:
        for number in numbers:
            started = time.perf_counter()
            answer = await client.post(
                "/api/v1/agent-enroll",
                json={
                    "agentName": f"idle-{number}",
                    "ttl": "1h",
                    "publicKey": base64.b64encode(secrets.token_bytes(32)).decode(),
                },
            )
            answer.raise_for_status()
            latencies.append(time.perf_counter() - started)

    async with httpx.AsyncClient(
        base_url=running.url,
        headers={"Authorization": f"Bearer {running.workspace_token}"},
        timeout=60,
    ) as client:
        started = time.perf_counter()
        await asyncio.gather(*(client_loop(client) for _ in range(clients)))
        seconds = time.perf_counter() - started
    return {"per_second": round(count / seconds, 1), **summary(latencies)}


def idle_cpu(pids: dict[str, int], seconds: float) -> dict[str, float]:
    """CPU of each process over a while with nothing to do, in percent of a core."""
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    time.sleep(seconds)  # the measured interval itself
    return {
        name: round((cpu_seconds(pid) - before[name]) / seconds * 100, 2)
        for name, pid in pids.items()
    }


def metric_values(url: str, prefix: str) -> dict[str, float]:
    """The samples of /metrics whose names begin so."""
    text = httpx.get(f"{url}/metrics").raise_for_status().text
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(prefix))
    return {name: float(value) for name, value in lines}


def live_peers(
    running: Fabric, settings: dict[str, Any], peers: int, rounds: int, idle: float
) -> dict[str, Any]:
    """What many live peers cost."""
    enrolled = asyncio.run(enroll_many(running, peers))
    pids = {
        "control_plane": running.server_pid,
        "gateway_daemon": running.gateway_pid,
        "gateway_engine": running.engine_pid,
    }
    # one reconciler pass falls into an interval of more than a minute
    at_rest = idle_cpu({name: pid for name, pid in pids.items() if pid is not None}, idle)
    memory = {name: round(resident_mb(pid), 1) for name, pid in pids.items() if pid is not None}
    passes = metric_values(running.url, "lattice_reconciler_seconds_")
    count = passes["lattice_reconciler_seconds_count"]
    mean = passes["lattice_reconciler_seconds_sum"] / count
    reconciler = {"passes": int(count), "mean_ms": round(mean * 1000, 2)}
    with engine_kept_warm(settings):
        first_byte(settings)
        join = summary([first_byte(settings) for _ in range(rounds)])
    running.kill_gateway_daemon()
    resync = seconds_of(running.start_gateway_daemon)
    running.kill_server()
    restart = seconds_of(running.start_server)
    return {
        "peers": peers,
        "enrollments": enrolled,
        "idle_cpu_percent_of_a_core": at_rest,
        "resident_mb": memory,
        "join_warm": join,
        "gateway_daemon_restart_and_full_resync_s": round(resync, 2),
        "control_plane_restart_s": round(restart, 2),
        "reconciler": reconciler,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--idle", type=float, default=65, help="seconds")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "machine": {
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "import": import_times(min(7, arguments.rounds)),
    }
    with fabric() as (running, settings):
        cold = [join.cold_join(settings) for _ in range(-(-arguments.rounds // 3))]
        result["join_cold"] = summary(cold)
        with engine_kept_warm(settings):
            first_byte(settings)
            result["join_warm"] = summary([first_byte(settings) for _ in range(arguments.rounds)])
        result["engine_memory"] = engine_memory(settings, arguments.agents)
        result["live_peers"] = live_peers(
            running, settings, arguments.peers, min(10, arguments.rounds), arguments.idle
        )
    print(json.dumps(result, indent=2))


@contextlib.contextmanager
def engine_kept_warm(settings: dict[str, Any]) -> Iterator[None]:
    """Another agent keeps the engine of this process running."""
    from lattice_sdk import LatticeAgent

    with LatticeAgent(**settings):
        yield


if __name__ == "__main__":
    main()
