"""Waiting for conditions; a test that sleeps a fixed time is either slow or wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# Seconds around the end of an identity in which its last byte comes. 0.25 are promised, to which
# `make demo` holds on a machine that does nothing else; this bound has room for other tests.
CUT_WITHIN = 4.0


def wait_for(
    what: str, condition: Callable[[], T], timeout: float = 60.0, pause: float = 0.005
) -> T:
    """Poll until ``condition`` is true and return what it gave; fail with ``what`` otherwise."""
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline  # before the last look
        if value := condition():
            return value
        if late:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(pause)


def process_stat(pid: int) -> list[str]:
    """Of /proc/PID/stat what follows the command (proc(5)): state, parent, group and so on.

    Nothing when the process has ended.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def process_state(pid: int) -> str:
    """One letter, as ps has it: ``T`` is stopped, ``Z`` a zombie; empty when it has ended."""
    return "".join(process_stat(pid)[:1])


def process_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    return process_state(pid) not in ("", "Z")


def processes_mentioning(text: str) -> list[tuple[int, str]]:
    """Processes, other than this one, whose command line contains ``text``."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in command and process_alive(int(name)):
            found.append((int(name), command))
    return found


def children() -> set[int]:
    """The child processes of this process that run."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                found |= {int(pid) for pid in file.read().split()}
        except (FileNotFoundError, ProcessLookupError):
            continue
    return {pid for pid in found if process_alive(pid)}
