"""Footprint: memory, threads, descriptors and idle CPU of many agents; imports; wheels."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.fabrics import cpu_seconds, fabric, in_fresh_interpreter, resident_mb
from benchmarks.report import Curve, Section

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "lattice_sdk",
    "lattice_engine",
    "lattice_server",
    "lattice_langgraph",
    "lattice_autogen",
    "lattice_claude",
    "lattice_k8s_job",
)
RENEWAL = 1800.0  # seconds between renewals of an identity that lives for an hour
SIZES: dict[str, dict[str, Any]] = {
    "full": {"counts": [1, 10, 100, 1000], "idle": 20.0, "imports": 7, "wheels": True},
    "quick": {"counts": [1, 10, 50], "idle": 4.0, "imports": 1, "wheels": False},
    "tiny": {"counts": [1, 2], "idle": 0.2, "imports": 1, "wheels": False},
}
ENGINE, FURTHER, FURTHER_OF_MANY = 30, 2, 0.5  # MB
IMPORT = 200  # ms
STACK = (
    "Go's runtime, gVisor's stack and wireguard-go, before any agent. It would take less of them"
)
LOADED = (
    "an interpreter that reads its modules; what imports what says `python -X importtime`. It "
    "would take fewer of them before the first agent"
)
MEMORY = (
    "of few agents the first one's connection weighs; each has a network stack, a WireGuard device "
    "and a proxy of its own. It would take one device for all agents of an engine"
)
IDLE = (
    "each agent's device sends a keepalive every 25 s and counts its peers' timers. It would take "
    "one device for all agents of an engine"
)
MANY = """
import json, sys
from benchmarks.footprint import many
print(json.dumps(many(*json.loads(sys.stdin.read()))))
"""


def measure(size: str) -> Section:
    """Agents by their number, then what importing and installing costs."""
    options = SIZES[size]
    section = Section("Footprint")
    counts, found = options["counts"], {}
    with fabric() as (_, settings):
        for count in counts:
            idle = options["idle"] if count == counts[-1] else 0
            text = json.dumps([settings, count, idle])
            found[count] = in_fresh_interpreter(MANY, text=text)
    lines: dict[str, list[tuple[float, float]]] = {"engine": [], "Python": []}
    for count, one in found.items():
        agents = f"{count} agent{'s' if count > 1 else ''}"
        for what, name in (("engine", "engine"), ("python", "Python")):
            told = f"{name}'s memory, {agents}"
            if (what, count) == ("engine", 1):
                section.at_most(told, one[what]["mb"], "MB", ENGINE, note=STACK)
            else:
                section.add(told, one[what]["mb"], "MB")
            lines[name].append((count, one[what]["mb"]))
        for what in ("threads", "descriptors"):
            values = f"engine {one['engine'][what]}, Python {one['python'][what]}"
            total = one["engine"][what] + one["python"][what]
            section.add(f"{what}, {agents} ({values})", total, "")
    section.curves.append(Curve("Memory by agents", "agents", "MB", lines))
    most = counts[-1]
    for count in counts[1:]:
        more = found[count]["engine"]["mb"] - found[counts[0]]["engine"]["mb"]
        limit = FURTHER_OF_MANY if count == most else FURTHER
        told = f"engine's memory for each further idle agent of {count}"
        section.at_most(told, more / (count - counts[0]), "MB", limit, note=MEMORY)
    _idle(section, found[most]["idle"], most)
    if options["imports"]:
        _imports(section, options["imports"])
    if options["wheels"]:
        _wheels(section)
    return section


def _idle(section: Section, idle: dict[str, float], agents: int) -> None:
    for part in ("engine", "python"):
        section.add(f"idle CPU of {agents} agents, {part}: keepalives", idle[part] * 100, "%")
    section.add("processor time of a renewal, engine and Python", idle["renewal"] * 1000, "ms")
    renewing = idle["renewal"] * agents / RENEWAL
    total = (idle["engine"] + idle["python"] + renewing) * 100
    section.at_most(
        f"idle CPU of {agents} agents, with a renewal each half an hour",
        total,
        "% of a core",
        2,
        note=IDLE,
    )


def many(settings: dict[str, Any], count: int, idle: float) -> dict[str, Any]:
    """So many open agents in this process: what they hold, and what they do while nobody asks."""
    from lattice_sdk import LatticeAgent

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    options = {**settings, "backend": "userspace", "isolation": "proxy", "timeout": 120}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        agents = [LatticeAgent(**{**options, "agent_name": f"idle-{n}"}) for n in range(count)]
        for agent in pool.map(LatticeAgent.open, agents):
            stack.callback(agent.close)
        pid = agents[0].engine_pid
        assert pid is not None
        found: dict[str, Any] = {"engine": _held(pid), "python": _held(os.getpid())}
        if idle:
            found["idle"] = _idling(pid, agents, idle, pool)
        # At once: one by one a thousand would take long.
        list(pool.map(LatticeAgent.close, agents))
    return found


def _idling(pid: int, agents: list[Any], idle: float, pool: ThreadPoolExecutor) -> dict[str, float]:
    def spent() -> tuple[float, float]:
        return cpu_seconds(pid), time.process_time()

    before, began = spent(), time.perf_counter()
    time.sleep(idle)
    after, took = spent(), time.perf_counter() - began
    some = agents[: min(len(agents), 100)]
    list(pool.map(lambda agent: agent.renew(), some))
    renewed = spent()
    return {
        "engine": (after[0] - before[0]) / took,
        "python": (after[1] - before[1]) / took,
        "renewal": (sum(renewed) - sum(after)) / len(some),
    }


def _held(pid: int) -> dict[str, float]:
    proc = Path(f"/proc/{pid}")
    return {
        "mb": resident_mb(pid),
        "threads": len(list((proc / "task").iterdir())),
        "descriptors": len(list((proc / "fd").iterdir())),
    }


def _imports(section: Section, rounds: int) -> None:
    def run(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    run("pass")
    taken: dict[str, list[float]] = {"pass": []} | {f"import {name}": [] for name in PACKAGES}
    taken["from lattice_sdk import LatticeAgent"] = []
    for _ in range(rounds):
        for code, times in taken.items():
            times.append(run(code))
    bare = statistics.median(taken.pop("pass"))
    for code, times in taken.items():
        values = [(t - bare) * 1000 for t in times]
        told = f"{code}, over the bare interpreter"
        if code == "import lattice_sdk":
            section.at_most(told, values, "ms", IMPORT, note=LOADED)
        else:
            section.add(told, values, "ms")


def _wheels(section: Section) -> None:
    """Built as `make wheels` does, into a folder that is gone afterwards."""
    uv, go = ROOT / ".tools" / "bin" / "uv", ROOT / "scripts" / "bootstrap.sh"
    if not uv.exists() or shutil.which("git") is None:
        section.remarks.append("The wheels were not built: this is no clone that was set up.")
        return
    found = subprocess.run([str(go), "go"], capture_output=True, text=True, check=True).stdout
    environment = {**os.environ, "LATTICE_GO": found.strip()}
    with tempfile.TemporaryDirectory() as directory:
        for package in sorted((ROOT / "packages").iterdir()):
            command = [str(uv), "build", "--quiet", "--wheel", "--no-build-isolation"]
            command += ["--python", sys.executable, "--out-dir", directory, str(package)]
            subprocess.run(command, env=environment, check=True)
        for wheel in sorted(Path(directory).glob("*.whl")):
            section.add(f"wheel of {wheel.name.split('-')[0]}", wheel.stat().st_size / 1e6, "MB")
