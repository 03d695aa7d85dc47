"""What ``lattice exec`` costs over the bare command, as one JSON object.

    python -m benchmarks.exec [--rounds 40]

Measures on the machine it runs on, against the real control plane, gateway and engine:

* from the start of the command to the program's first instruction, and to the command's end: bare,
  with an identity and a network namespace of its own, and where the SDK does all of it;
* the same of a program of an agent that is open already (``agent.popen``);
* resident memory of what is beside the program while it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fabrics import ProcessEndedError, fabric, resident_mb
from benchmarks.report import summary
from lattice_sdk.testing.leftovers import descendants

# Prints the clock as soon as it runs; the interpreter without site is what starts fastest here.
CLOCK = [sys.executable, "-I", "-S", "-c", "import time; print(time.monotonic())"]
LATTICE = [str(Path(sys.executable).with_name("lattice")), "exec", "--"]


def started(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds until the program says that it runs, and until the command has ended."""
    began = time.monotonic()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout) - began, time.monotonic() - began


def rounds(number: int, measure: Callable[[], tuple[float, float]]) -> dict[str, Any]:
    """A measure's summary, without its first round."""
    measure()
    found = [measure() for _ in range(number)]
    return {
        "to_the_program": summary([each[0] for each in found]),
        "to_the_end": summary([each[1] for each in found]),
    }


def of_agent(settings: dict[str, Any], number: int) -> dict[str, Any]:
    """Programs of an agent that is open."""
    from lattice_sdk import LatticeAgent

    with LatticeAgent(**settings, isolation="required") as agent:

        def measure() -> tuple[float, float]:
            began = time.monotonic()
            done = agent.run(CLOCK, stdout=subprocess.PIPE, text=True, check=True)
            return float(done.stdout) - began, time.monotonic() - began

        return rounds(number, measure)


def memory(environment: dict[str, str]) -> dict[str, float]:
    """Of what runs beside a program that does nothing."""
    command = [*LATTICE, "cat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        if not process.stdout.readline():
            raise RuntimeError("lattice exec ended before its program began")
        names = {"command": round(resident_mb(process.pid), 1)}
        for pid in descendants(process.pid):
            with contextlib.suppress(ProcessEndedError):  # it has prepared the program
                name, used = named(pid), round(resident_mb(pid), 1)
                names[f"{name}{'' if name not in names else ' (2)'}"] = used
    return names


def named(pid: int) -> str:
    """A process's program, and what the engine does.

    Raises:
        ProcessEndedError: there is no such process any more.
    """
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessEndedError(pid) from error
    word = words[0].rpartition("/")[2]
    return f"{word} {words[1]}" if word == "lattice-engine" else word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    number = parser.parse_args().rounds
    with fabric() as (running, settings):
        environment = {
            **os.environ,
            "LATTICE_SERVER": running.url,
            "LATTICE_TOKEN": running.workspace_token,
            "LATTICE_ISOLATION": "required",
        }
        by_sdk = {**environment, "LATTICE_TIMEOUT": "30"}
        result = {
            "machine": {"kernel": platform.release(), "cpus": os.cpu_count()},
            "bare": rounds(number, lambda: started(CLOCK, environment)),
            "exec": rounds(number, lambda: started([*LATTICE, *CLOCK], environment)),
            "exec_by_the_sdk": rounds(
                max(3, number // 4), lambda: started([*LATTICE, *CLOCK], by_sdk)
            ),
            "agent_run": of_agent(settings, number),
            "resident_mb": memory(environment),
        }
    over = result["exec"]["to_the_program"]["p50_ms"] - result["bare"]["to_the_program"]["p50_ms"]
    result["start_over_the_bare_command_ms"] = round(over, 1)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
