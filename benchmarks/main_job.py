"""The figures of the main job, as one JSON object.

    python benchmarks/main_job.py [--rounds 30] [--peers 10000] [--agents 20]

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
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from lattice_sdk.testing.tools import ToolService

TICKS = os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory in MB, as /proc/PID/status says."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no VmRSS")


def cpu_seconds(pid: int) -> float:
    """User and system time of the process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def summary(values: list[float], unit: str = "ms") -> dict[str, float]:
    """Median, 99th percentile and spread of measured seconds, in milliseconds."""
    scaled = sorted(value * 1000 for value in values)
    return {
        f"p50_{unit}": round(statistics.median(scaled), 1),
        f"p99_{unit}": round(scaled[min(len(scaled) - 1, round(len(scaled) * 0.99))], 1),
        f"min_{unit}": round(scaled[0], 1),
        f"max_{unit}": round(scaled[-1], 1),
        "rounds": len(scaled),
    }


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


def first_byte(settings: dict[str, Any]) -> float:
    """Seconds from entering the agent to the first byte of a designated service."""
    from lattice_sdk import LatticeAgent

    started = time.perf_counter()
    with (
        LatticeAgent(**settings) as agent,
        agent.http_client() as http,
        http.stream("GET", "http://github-tools.lattice/") as answer,
    ):
        next(answer.iter_raw())
        return time.perf_counter() - started


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


async def enroll_many(fabric: Any, count: int, clients: int = 16) -> dict[str, float]:
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
        base_url=fabric.url,
        headers={"Authorization": f"Bearer {fabric.workspace_token}"},
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


def live_peers(fabric: Any, settings: dict[str, Any], peers: int, rounds: int) -> dict[str, Any]:
    """What many live peers cost."""
    enrolled = asyncio.run(enroll_many(fabric, peers))
    pids = {
        "control_plane": fabric.server_pid,
        "gateway_daemon": fabric.gateway_pid,
        "gateway_engine": fabric.engine_pid,
    }
    # one reconciler pass falls into this interval, as it runs each minute
    idle = idle_cpu(pids, 65)
    memory = {name: round(resident_mb(pid), 1) for name, pid in pids.items()}
    passes = metric_values(fabric.url, "lattice_reconciler_seconds_")
    count = passes["lattice_reconciler_seconds_count"]
    mean = passes["lattice_reconciler_seconds_sum"] / count
    reconciler = {"passes": int(count), "mean_ms": round(mean * 1000, 2)}
    with engine_kept_warm(settings):
        first_byte(settings)
        join = summary([first_byte(settings) for _ in range(rounds)])
    fabric.kill_gateway_daemon()
    started = time.perf_counter()
    fabric.start_gateway_daemon()
    resync = time.perf_counter() - started
    fabric.kill_server()
    started = time.perf_counter()
    fabric.start_server()
    restart = time.perf_counter() - started
    return {
        "peers": peers,
        "enrollments": enrolled,
        "idle_cpu_percent_of_a_core": idle,
        "resident_mb": memory,
        "join_warm": join,
        "gateway_daemon_restart_and_full_resync_s": round(resync, 2),
        "control_plane_restart_s": round(restart, 2),
        "reconciler": reconciler,
    }


@contextlib.contextmanager
def running_fabric() -> Iterator[tuple[Any, dict[str, Any]]]:
    """A fabric with one designated tool service, and an agent's settings for it."""
    from lattice_server.fabric import Fabric

    with (
        tempfile.TemporaryDirectory(prefix="lattice-bench-") as directory,
        Fabric(Path(directory)) as fabric,
        ToolService("github-tools") as service,
        connector_process(fabric, service.target),
    ):
        settings = {
            "server": fabric.url,
            "token": fabric.workspace_token,
            "agent_name": "bench",
            "policy_preset": "sandboxed",
        }
        yield fabric, settings


@contextlib.contextmanager
def connector_process(fabric: Any, target: str) -> Iterator[None]:
    """The connector in a process of its own, so that its tunnel is not in the measured engine."""
    token = fabric.create_service("github-tools", [{"port": 80, "protocol": "tcp"}])
    command = [sys.executable, "-m", "lattice_sdk", "connect", "github-tools"]
    command += ["--listen", "80", "--to", target, "--proxy-protocol", "--output", "json"]
    with subprocess.Popen(
        command,
        env={**os.environ, "LATTICE_SERVER": fabric.url, "LATTICE_TOKEN": token},
        stdout=subprocess.PIPE,
    ) as process:
        try:
            if process.stdout is None or not process.stdout.readline():
                raise RuntimeError("the connector did not start")
            yield
        finally:
            process.terminate()


def cold_join(settings: dict[str, Any], rounds: int) -> dict[str, float]:
    """Join from a fresh interpreter each time, after its imports: the engine starts as well."""
    code = (
        "import json, os, sys; sys.path.insert(0, sys.argv[1]); "
        "from main_job import first_byte; import httpx; from lattice_sdk import LatticeAgent; "
        "print(first_byte(json.loads(os.environ['SETTINGS'])))"
    )
    values = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            env={**os.environ, "SETTINGS": json.dumps(settings)},
            check=True,
            capture_output=True,
            text=True,
        )
        values.append(float(done.stdout))
    return summary(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--agents", type=int, default=20)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "machine": {
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "import": import_times(),
    }
    with running_fabric() as (fabric, settings):
        result["join_cold"] = cold_join(settings, max(3, arguments.rounds // 3))
        with engine_kept_warm(settings):
            first_byte(settings)
            result["join_warm"] = summary([first_byte(settings) for _ in range(arguments.rounds)])
        result["engine_memory"] = engine_memory(settings, arguments.agents)
        result["live_peers"] = live_peers(fabric, settings, arguments.peers, 10)
    print(json.dumps(result, indent=2))


@contextlib.contextmanager
def engine_kept_warm(settings: dict[str, Any]) -> Iterator[None]:
    """Another agent keeps the engine of this process running."""
    from lattice_sdk import LatticeAgent

    with LatticeAgent(**settings):
        yield


if __name__ == "__main__":
    main()
