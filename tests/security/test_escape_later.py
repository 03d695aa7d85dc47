"""What Lattice begins while a sandboxed program runs is as hidden from it as what was there before.

It waits for another agent of the same user, whose keys and whose programs' isolation lie in files.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lattice_engine import EngineProcess, private_directory
from lattice_sdk import LatticeAgent

# Says whether it can read, and then whether it can change, the file that it is told of.
LOOK = """
import sys
print("ready", flush=True)
path = sys.stdin.readline().strip()
for mode in ("r", "r+"):
    try:
        open(path, mode).close()
        print("yes", end=" ")
    except OSError as error:
        print(error.strerror, end=" ")
"""


@contextmanager
def engine() -> Iterator[Path]:
    """Another process's engine."""
    with EngineProcess.start_netstack() as started:
        yield started.control.parent


@contextmanager
def fabric() -> Iterator[Path]:
    """Where `lattice dev` keeps an admin token."""
    with private_directory("dev-") as name:
        yield Path(name)


@pytest.mark.parametrize("begin", [engine, fabric])
def test_what_begins_later_cannot_be_read_or_changed(
    agent: LatticeAgent, begin: Callable[[], Iterator[Path]]
) -> None:
    program = [sys.executable, "-I", "-c", LOOK]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with agent.popen(program, **pipes) as inside, begin() as directory:
        secret = directory / "spec"
        secret.write_text("kind=plain\n")
        assert inside.stdout is not None
        assert inside.stdout.readline() == "ready\n"
        told = inside.communicate(f"{secret}\n", timeout=60)[0]
        free = subprocess.run(program, input=f"{secret}\n", capture_output=True, text=True)
    assert free.stdout == "ready\nyes yes "
    assert told == "No such file or directory No such file or directory "


def test_its_own_engines_directory_is_not_seen(agent: LatticeAgent) -> None:
    assert agent.engine_pid
    shared = Path(tempfile.gettempdir()) / f"lattice-{os.geteuid()}"
    assert list(shared.iterdir())
    assert agent.run(["ls", "-A", shared], capture_output=True, text=True).stdout == ""
