"""What an agent's process has made, and what of it is still there afterwards."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from pathlib import Path

__all__ = ["Leftovers", "alive", "descendants", "files"]

KINDS = ("net", "user", "mnt", "pid", "ipc")  # of namespaces, namespaces(7)


class Leftovers:
    """Watches for what comes after its making: processes, namespaces, threads, sockets, files.

    Args:
        directory: where this process, and what it starts, makes temporary files; empty.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._began = _since_boot()
        self._ancestors = set(_ancestry(os.getpid()))
        self._own = _namespaces(os.getpid())
        self._processes = _started(os.getpid())
        self._namespaces = {name for pid, _ in self._processes for name in _namespaces(pid)}
        self._threads = set(threading.enumerate())
        self._sockets = _sockets()
        self._noted: set[tuple[int, str]] = set()
        self._noted_namespaces: set[str] = set()

    def note(self, process: int | None = None) -> None:
        """Remember what there is now below a process: it must be gone later.

        Args:
            process: process id; this one when left out.
        """
        found = _started(process or os.getpid()) - self._processes
        for pid, _ in found:
            self._noted_namespaces |= _namespaces(pid) - self._own - self._namespaces
        self._noted |= found

    def of_program(self) -> list[str]:
        """What is left of a process that was noted."""
        return [*self._left_processes(self._noted), *self._left_namespaces()]

    def found(self) -> list[str]:
        """What is left in and of this process."""
        gc.collect()
        new = _started(os.getpid()) - self._processes
        threads = set(threading.enumerate()) - self._threads - {threading.current_thread()}
        return [
            *self._left_processes(self._noted | new),
            *self._left_namespaces(),
            *(f"thread {thread.name}" for thread in threads if thread.is_alive()),
            *(f"{name} of this process" for name in sorted(_sockets() - self._sockets)),
            *(f"file {path}" for path in files(self.directory)),
        ]

    def _left_processes(self, processes: set[tuple[int, str]]) -> list[str]:
        return [
            f"process {pid}: {_command(pid)}"
            for pid, since in sorted(processes)
            if alive(pid) and _since(pid) == since
        ]

    def _left_namespaces(self) -> list[str]:
        if not self._noted_namespaces:
            return []
        left = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            held = (_namespaces(int(pid)) | _links(f"/proc/{pid}/fd")) & self._noted_namespaces
            if held and (self._is_stranger(int(pid)) or not alive(int(pid))):
                continue  # another program's, or one that has ended while it was looked at
            left += [f"namespace {name} of process {pid}: {_command(int(pid))}" for name in held]
        return left

    def _is_stranger(self, pid: int) -> bool:
        """Whether the process belongs to a tree that was there before, and is not of this process.

        The kernel gives the number of a namespace that has gone to the next one that anybody
        makes. What has been left by a child of this process is below this process, or below what
        adopted it, which is an ancestor of this process too; its tree has begun meanwhile.
        """
        top = pid
        for ancestor in _ancestry(pid):
            if ancestor in self._ancestors:
                break
            top = ancestor
        return top not in self._ancestors and int(_since(top) or self._began) < self._began


def descendants(pid: int) -> list[int]:
    """Children of the process, their children and so on (proc(5): task/TID/children)."""
    found: list[int] = []
    tasks: list[str] = []
    with contextlib.suppress(OSError):
        tasks = os.listdir(f"/proc/{pid}/task")
    for task in tasks:
        with contextlib.suppress(OSError):  # a thread that has ended
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
            for child in map(int, children):
                found += [child, *descendants(child)]
    return found


def files(directory: Path) -> list[str]:
    """Files and directories below a directory, of which some may be removed meanwhile."""
    return [
        os.path.join(below, name)
        for below, directories, names in os.walk(directory)  # which passes over what has gone
        for name in [*directories, *names]
    ]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    return _stat(pid)[0] not in ("", "Z")


def _started(pid: int) -> set[tuple[int, str]]:
    """Descendants with their start times: a process id alone may be another process's later."""
    return {(child, _since(child)) for child in descendants(pid)}


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on, proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [""]


def _since(pid: int) -> str:
    return "".join(_stat(pid)[19:20])


def _since_boot() -> int:
    """Now, in the clock ticks of :func:`_since`."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def _ancestry(pid: int) -> list[int]:
    """The process, its parent, and so on."""
    found: list[int] = []
    while pid > 0 and pid not in found:
        found.append(pid)
        parent = _stat(pid)[1:2]
        pid = int(parent[0]) if parent else 0
    return found


def _namespaces(pid: int) -> set[str]:
    found = set()
    for kind in KINDS:
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return found


def _links(directory: str) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"{directory}/{name}"))
    return found


def _sockets() -> set[str]:
    return {link for link in _links("/proc/self/fd") if link.startswith("socket:")}


def _command(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return "ended"
    return command.decode(errors="replace")[:120]
