"""Waiting for conditions; a test that sleeps a fixed time is either slow or wrong."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# Seconds around the end of an identity in which its last byte comes. 0.25 are promised, to which
# `make demo` holds on a machine that does nothing else; this bound has room for other tests.
CUT_WITHIN = 4.0


def wait_for(
    what: str,
    condition: Callable[[], T],
    timeout: float = 60.0,
    pause: float = 0.005,
    instead: Callable[[], object] | None = None,
) -> T:
    """Poll until ``condition`` is true and return what it gave; fail with ``what`` otherwise.

    ``instead`` says what is there instead.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline  # before the last look
        if value := condition():
            return value
        if late:
            there = f"; there is: {instead()}" if instead else ""
            raise AssertionError(f"not within {timeout:g} s: {what}{there}")
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


def long_sleep() -> str:
    """Seconds to sleep for longer than any test takes, which no other process sleeps for.

    So ``sleep`` with it is told from everybody else's, see `sleeping`.
    """
    return f"{secrets.randbelow(10**9) + 10**4}.{os.getpid()}"


def sleeping(seconds: str) -> list[int]:
    """The processes that are ``sleep`` with just that."""
    found = processes_mentioning(f"sleep {seconds}")
    return [pid for pid, line in found if line.split() == ["sleep", seconds]]


def children(*, ended: bool = False) -> set[int]:
    """The child processes of this process that run; or also those that have ``ended``, zombies."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                found |= {int(pid) for pid in file.read().split()}
        except (FileNotFoundError, ProcessLookupError):
            continue
    return {pid for pid in found if ended or process_alive(pid)}
