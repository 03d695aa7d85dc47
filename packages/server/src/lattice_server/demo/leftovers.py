"""What a program leaves behind on this machine, so that "nothing" can be shown."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

__all__ = ["Footprint"]

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class Footprint:
    """Processes, namespaces, sockets and files that this process and its children make.

    From now on, whatever a child leaves running becomes a child of this process (subreaper,
    prctl(2)), so that none can get away.

    Args:
        directory: where everything goes that is made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._namespaces: set[str] = set()
        self._had = _own_sockets()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot become the reaper of what is left running")

    def remember_namespaces(self) -> int:
        """Note the namespaces that children live in. Returns how many networks have been noted."""
        own = _namespaces("self")
        for pid in _descendants():
            self._namespaces |= _namespaces(str(pid)) - own
        return sum(name.startswith("net:") for name in self._namespaces)

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
        # Of nobody else: what children leave comes to this process, and the kernel gives the
        # number of a namespace that has gone to the next one that anybody makes.
        return [
            f"namespace {namespace} of process {pid}"
            for pid in (os.getpid(), *_descendants())
            for namespace in sorted(
                (_namespaces(str(pid)) | _descriptors(str(pid))) & self._namespaces
            )
        ]

    def _sockets(self) -> list[str]:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]
        paths = (line.split(maxsplit=7)[7:] for line in lines)
        below = f"{self.directory}/"
        return [f"socket {path[0]}" for path in paths if path and path[0].startswith(below)]

    def _own_sockets(self) -> list[str]:
        new = _own_sockets() - self._had
        return [f"socket {name} of this process" for name in sorted(new)]

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


def _own_sockets() -> set[str]:
    return {name for name in _descriptors("self") if name.startswith("socket:")}


def _descriptors(pid: str) -> set[str]:
    """What the descriptors of a process are of."""
    return _links(f"/proc/{pid}/fd")


def _namespaces(pid: str) -> set[str]:
    return _links(f"/proc/{pid}/ns")


def _links(directory: str) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # the process ends
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):  # so does the descriptor that listed them
                found.add(os.readlink(f"{directory}/{name}"))
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    except OSError:
        return "ended"
