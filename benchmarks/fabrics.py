"""Running fabrics and what is around them, for the benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lattice_sdk.testing.tools import ToolService
from lattice_server.fabric import Fabric

TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def fabric(*, tool: str | None = None, **options: Any) -> Iterator[tuple[Fabric, dict[str, Any]]]:
    """Control plane, gateway and one designated tool service on port 80; an agent's settings.

    Args:
        tool: ``HOST:PORT`` of the service; one that answers small requests when left out.
        options: of :class:`lattice_server.fabric.Fabric`.
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="lattice-bench-"))
        running = stack.enter_context(Fabric(Path(directory), **options))
        target = tool or stack.enter_context(ToolService("github-tools")).target
        stack.enter_context(connector(running, "github-tools", {80: target}, proxy=tool is None))
        yield (
            running,
            {
                "server": running.url,
                "token": running.workspace_token,
                "agent_name": "bench",
                "policy_preset": "sandboxed",
            },
        )


@contextlib.contextmanager
def connector(
    running: Fabric, name: str, listen: Mapping[int, str], *, proxy: bool = False
) -> Iterator[None]:
    """A connector in a process of its own, so that its tunnel is not in a measured engine."""
    ports = [{"port": port, "protocol": "tcp"} for port in listen]
    token = running.create_service(name, ports)
    command = [sys.executable, "-m", "lattice_sdk", "connect", name, "--output", "json"]
    for port, target in listen.items():
        command += ["--listen", str(port), "--to", target]
    command += ["--proxy-protocol"] if proxy else []
    with process(command, {"LATTICE_SERVER": running.url, "LATTICE_TOKEN": token}):
        yield


@contextlib.contextmanager
def process(
    command: list[str], environment: Mapping[str, str] | None = None, **options: Any
) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """A process that is ready with its first line, and that line; ended with the block.

    Raises:
        RuntimeError: it ended without a line.
    """
    with subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        **options,
    ) as running:
        try:
            line = running.stdout.readline() if running.stdout else b""
            if not line:
                raise RuntimeError(f"{command[:4]} did not start")
            yield running, line
        finally:
            running.terminate()


class ProcessEndedError(RuntimeError):
    """A process has ended, so that it has nothing to be measured."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} has ended")


def resident_mb(pid: int) -> float:
    """Resident memory in MB, as /proc/PID/status says.

    Raises:
        ProcessEndedError: there is no such process, or it is a zombie.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessEndedError(pid) from error
    for line in lines:
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessEndedError(pid)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def seconds_of(action: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_fresh_interpreter(code: str, *arguments: str, text: str = "") -> Any:
    """Run code in an interpreter of its own, with a standard input; what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        input=text,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
