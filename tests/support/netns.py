"""A network namespace of the test's own; what its one thread starts lives there."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
CLONE_NEWNET = 0x40000000  # sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def _unshare_network() -> None:
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class NetworkNamespace:
    """Context manager; needs root. It ends with its thread and what was started in it."""

    def __enter__(self) -> NetworkNamespace:
        self._thread = ThreadPoolExecutor(1, initializer=_unshare_network)
        self.run(os.getpid)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)

    def run(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        """Call ``function`` inside and return its value."""
        return self._thread.submit(function, *args, **kwargs).result()

    def command(self, *argv: str, timeout: float = 20, **kwargs: object) -> str:
        """Run a command inside and return its output; fails with its error text."""
        done: subprocess.CompletedProcess[str] = self.run(
            subprocess.run, argv, capture_output=True, text=True, timeout=timeout, **kwargs
        )
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr}")
        return done.stdout
