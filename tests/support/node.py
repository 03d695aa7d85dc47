"""A node for pod tests: podman as the container runtime, and a network for pods."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import itertools
import os
import re
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from support import waiting
from support.images import BUILD, Images, build
from support.waiting import processes_mentioning

T = TypeVar("T")
# As in support.waiting, at a pace that leaves the machine to the pods.
wait_for = functools.partial(waiting.wait_for, pause=0.05)
CLONE_NEWNET = 0x40000000  # sched.h
BRIDGE, NODE_IP, PREFIX = "lattice-pods", "10.244.77.1", 24
# All that a node has but for its images. One on a machine at a time: bridge and addresses are too.
HOME = Path("/run/test-pods")
PATIENCE = 30.0  # seconds for another node of this machine to end
# Programs that pods need, and the Debian packages that have them.
PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "conmon": "conmon",
    "catatonit": "catatonit",  # the first process of a pod
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "nft": "nftables",  # plays the cluster's network
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
# The first that works here: overlay does not on top of another overlay.
DRIVERS = ("overlay", "vfs")
# What this kind of machine wants of podman; see the issue that asks for these tests. The rest keeps
# this node apart from what else podman runs here: locks, state and volumes are its own.
CONTAINERS = f"""\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{HOME}/libpod"
volume_path = "{HOME}/volumes"
[network]
network_backend = "cni"
network_config_dir = "{HOME}/networks"
"""


class Node:
    """Context manager of one node; needs root.

    Attributes:
        images: of the tests.
        directory: of the pods' volumes.
    """

    images: Images

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._addresses = itertools.count(10)
        self.directory = HOME / "pods"

    def __enter__(self) -> Node:
        _check_machine()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_alone())
            _clean()  # after one that was killed
            stack.callback(_clean)
            self.directory.mkdir(parents=True)
            (HOME / "containers.conf").write_text(CONTAINERS)
            _choose_storage()
            self.images = build(self.podman)
            _ip("link", "add", "name", BRIDGE, "type", "bridge")
            _ip("address", "add", f"{NODE_IP}/{PREFIX}", "dev", BRIDGE)
            _ip("link", "set", BRIDGE, "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def podman(self, *arguments: str, check: bool = True, **options: Any) -> str:
        """A podman command; its output. ``offline=True`` is without any network."""
        done = _podman(*arguments, **options)
        if check and done.returncode:
            raise AssertionError(f"podman {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def connect(self, pid: int) -> tuple[str, str]:
        """Give the network namespace of a process an address in the pods' network.

        Returns it, and the name of the node's end.
        """
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
        return address, outside


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


def _podman(
    *arguments: str, offline: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(("unshare", "--net") if offline else ()), "podman", *arguments],
        env={
            **os.environ,
            "CONTAINERS_CONF": str(HOME / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(HOME / "storage.conf"),
        },
        capture_output=True,
        text=True,
        timeout=options.pop("timeout", 300),
        check=False,
        **options,
    )


def _check_machine() -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/libexec/podman:/usr/sbin:/sbin"
    missing = [package for name, package in PROGRAMS.items() if not shutil.which(name, path=path)]
    if missing:
        raise AssertionError(
            f"pods cannot run here: {', '.join(missing)} missing. On Debian: "
            f"apt-get install --no-install-recommends {' '.join(missing)}"
        )
    if os.geteuid():
        raise AssertionError("pods cannot run here: their network and volumes need root")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with HOME.with_suffix(".lock").open("w") as lock:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise AssertionError(
                        "pods cannot run here now: other pod tests do, and their bridge "
                        f"{BRIDGE} is one for the machine. Wait for them to end"
                    ) from None
                time.sleep(0.2)
        yield


def _choose_storage() -> None:
    """Write the configuration of the storage, with a driver that works here."""
    told = []
    for driver in DRIVERS:
        graph = BUILD / f"storage-{driver}"
        graph.mkdir(parents=True, exist_ok=True)
        (HOME / "storage.conf").write_text(
            f'[storage]\ndriver = "{driver}"\ngraphroot = "{graph}"\nrunroot = "{HOME}/run"\n'
        )
        done = _podman("images", "--quiet")
        if done.returncode == 0:
            if told:
                warnings.warn(f"podman stores images by {driver}, slowly: {told}", stacklevel=1)
            return
        told.append(f"{driver}: {done.stderr.strip()[-500:]}")
    raise AssertionError("podman can store images by none of its drivers here: " + "; ".join(told))


def left() -> list[str]:
    """What of a node is still on the machine; its images, in .build, may be."""
    found = [str(path) for path in Path("/sys/class/net").glob("lattice-pod*")]
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    found += [mount for mount in mounts if mount.startswith((f"{HOME}/", f"{BUILD}/"))]
    found += [command for _, command in processes_mentioning(str(HOME))]
    return [*found, *(str(path) for path in HOME.glob("*"))]


def _clean() -> None:
    """Remove all that a node leaves: pods, mounts, bridge, files. Images stay in .build."""
    places, graphs = [f"{HOME}/"], []
    if (configuration := HOME / "storage.conf").exists():
        _podman("pod", "rm", "--all", "--force", "--time", "0")
        _podman("system", "prune", "--external", "--force")  # what a killed build left
        # Of each container that ended, podman cleans up in a process of its own.
        wait_for("podman to end", lambda: not processes_mentioning(str(HOME)), PATIENCE)
        graphs = re.findall('graphroot = "(.+)"', configuration.read_text())
        places += graphs
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(tuple(places)):
            subprocess.run(["umount", "--lazy", mount], check=True)
    groups = Path("/sys/fs/cgroup")
    for parent in (*groups.glob("libpod_parent"), *groups.glob("*/libpod_parent")):
        for group, _, _ in os.walk(parent, topdown=False):
            with contextlib.suppress(OSError):  # in use, by another podman
                os.rmdir(group)
    if Path("/sys/class/net", BRIDGE).exists():
        _ip("link", "del", BRIDGE)
    # With the images podman keeps what it knows of containers, and where all its directories were.
    for path in (HOME, *(Path(graph) / "libpod" for graph in graphs)):
        shutil.rmtree(path, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
