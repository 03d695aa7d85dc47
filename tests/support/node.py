"""A node for pod tests: podman as the container runtime, and a network for pods."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from support.images import BUILD, Images, build

T = TypeVar("T")
CLONE_NEWNET = 0x40000000  # sched.h
BRIDGE, NODE_IP, PREFIX = "lattice-pods", "10.244.77.1", 24
# What this kind of machine wants of podman; see the issue that asks for these tests.
CONTAINERS = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{graph}"
runroot = "{run}"
"""


class Node:
    """Context manager of one node.

    Attributes:
        images: of the tests.
        directory: of the pods' volumes.
    """

    images: Images

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._addresses = itertools.count(10)

    def __enter__(self) -> Node:
        with contextlib.ExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(prefix="lattice-node-")
            self.directory = Path(stack.enter_context(temporary))
            (self.directory / "containers.conf").write_text(CONTAINERS)
            storage = STORAGE.format(graph=BUILD / "storage", run=self.directory / "run")
            (self.directory / "storage.conf").write_text(storage)
            self.images = build(self.podman)
            _ip("link", "add", "name", BRIDGE, "type", "bridge")
            stack.callback(_ip, "link", "del", BRIDGE)
            _ip("address", "add", f"{NODE_IP}/{PREFIX}", "dev", BRIDGE)
            _ip("link", "set", BRIDGE, "up")
            stack.callback(self.podman, "pod", "rm", "--all", "--force", "--time", "0")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def podman(self, *arguments: str, check: bool = True, **options: Any) -> str:
        """A podman command; its output."""
        done = subprocess.run(
            ["podman", *arguments],
            env={
                **os.environ,
                "CONTAINERS_CONF": str(self.directory / "containers.conf"),
                "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            },
            capture_output=True,
            text=True,
            timeout=options.pop("timeout", 120),
            check=False,
            **options,
        )
        if check and done.returncode:
            raise AssertionError(f"podman {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def connect(self, pid: int) -> str:
        """Give the network namespace of a process an address in the pods' network."""
        number = next(self._addresses)
        outside, address = f"lattice-pod{number}", f"10.244.77.{number}"
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _ip("link", "set", outside, "master", BRIDGE, "up")
        inside = ("nsenter", "-t", str(pid), "-n", "ip")
        for arguments in (
            ("address", "add", f"{address}/{PREFIX}", "dev", "eth0"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", NODE_IP),
        ):
            subprocess.run([*inside, *arguments], check=True, capture_output=True)
        return address


@contextlib.contextmanager
def start_node() -> Iterator[Node]:
    """A node until the end of the block; needs root."""
    with Node() as node:
        yield node


def inside(pid: int, function: Callable[[], T]) -> T:
    """Call ``function`` in the network namespace of a process, in a thread of its own.

    Sockets that it makes stay there, whoever uses them.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(descriptor)
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
