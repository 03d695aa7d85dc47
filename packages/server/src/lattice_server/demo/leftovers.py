"""What a program leaves behind on this machine, so that "nothing" can be shown."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

__all__ = ["Footprint"]

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class Footprint:
    """Processes, network namespaces, sockets and files that this process and its children make.

    From now on, whatever a child leaves running becomes a child of this process (subreaper,
    prctl(2)), so that none can get away.

    Args:
        directory: where everything goes that is made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._namespaces: set[str] = set()
        self._had = _own_descriptors("socket:")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot become the reaper of what is left running")

    def remember_namespaces(self) -> int:
        """Note the network namespaces that children live in. Returns how many there are."""
        own = _network_namespace("self")
        for pid in _descendants():
            namespace = _network_namespace(str(pid))
            if namespace not in (None, own):
                self._namespaces.add(str(namespace))
        return len(self._namespaces)

    def commands(self) -> list[str]:
        """Command lines of all processes that descend from this one."""
        return [_command(pid) for pid in _descendants()]

    def found(self) -> list[str]:
        """All that is there now; empty when nothing is."""
        return [
            *self._processes(),
            *self._held_namespaces(),
            *self._sockets(),
            *self._own_sockets(),
            *self._files(),
        ]

    def _processes(self) -> list[str]:
        found = []
        for pid in _descendants():
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    continue  # it had ended before its parent could see it
            found.append(f"process {pid}: {_command(pid)}")
        return found

    def _held_namespaces(self) -> list[str]:
        holders = (name for name in os.listdir("/proc") if name.isdigit())
        return [
            f"network namespace {namespace} of process {pid}"
            for pid in holders
            if (namespace := _network_namespace(pid)) in self._namespaces
        ]

    def _sockets(self) -> list[str]:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]
        paths = (line.split(maxsplit=7)[7:] for line in lines)
        below = f"{self.directory}/"
        return [f"socket {path[0]}" for path in paths if path and path[0].startswith(below)]

    def _own_sockets(self) -> list[str]:
        now = _own_descriptors("socket:")
        return [f"socket {name} of this process" for name in sorted(now - self._had)]

    def files(self, below: str) -> list[str]:
        """What is in a directory of the run's."""
        return [f"file {path}" for path in (self.directory / below).rglob("*")]

    def _files(self) -> list[str]:
        if not self.directory.exists():
            return []
        return [f"file {self.directory}", *self.files(".")]


def _descendants() -> list[int]:
    """Children of this process, their children and so on (proc(5): task/TID/children)."""
    found: list[int] = []
    left = [os.getpid()]
    while left:
        parent = left.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                children = Path(f"/proc/{parent}/task/{task}/children").read_text().split()
                left += map(int, children)
                found += map(int, children)
    return found


def _own_descriptors(kind: str) -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed them is gone
            name = os.readlink(f"/proc/self/fd/{number}")
            if name.startswith(kind):
                found.add(name)
    return found


def _network_namespace(pid: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None  # it has ended, or is somebody else's


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    except OSError:
        return "ended"
