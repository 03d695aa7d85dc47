"""The pod's other containers, as seen in its shared process namespace.

Before sidecars were native to Kubernetes (1.29) a pod ended only when each of its containers had,
and nothing tells a container about the others but their processes. Those are told apart by their
control group, which everybody may read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from lattice_sdk.errors import ConfigurationError

log = logging.getLogger("lattice.k8s")

POLL = 0.05  # seconds between looks at processes that may come
SETTLE = 0.5  # seconds in which the processes of a container may replace each other
PAUSE = 1  # process id of the pod's infrastructure container


class OtherContainers:
    """Watches their processes.

    Args:
        proc: where the process file system is.

    Raises:
        ConfigurationError: the pod does not share its processes.
    """

    def __init__(self, proc: Path = Path("/proc"), me: int | None = None) -> None:
        self._proc, self._me = proc, me or os.getpid()
        if self._me == PAUSE:
            raise ConfigurationError(
                "the sidecar cannot see the other containers end",
                hint="The pod needs shareProcessNamespace: true, which `lattice k8s inject "
                "--sidecar container` sets",
            )
        self._own = {self._group(self._me), self._group(PAUSE)}
        self._seen: set[str] = set()

    async def ended(self, expected: int) -> None:
        """Until ``expected`` other containers have started and all have ended."""
        while len(self._seen) < expected:
            self.processes()
            await asyncio.sleep(POLL)
        await self.gone()
        log.info("the pod's other containers have ended")

    async def gone(self) -> None:
        """Until there is no process of another container."""
        while True:
            while found := self.processes():
                await _end_of(next(iter(found)))
            await asyncio.sleep(SETTLE)
            if not self.processes():
                return

    def processes(self) -> set[int]:
        """Process ids of the other containers."""
        found = set()
        for name in os.listdir(self._proc):
            if name.isdecimal() and (pid := int(name)) not in (self._me, PAUSE):
                group = self._group(pid)
                if group and group not in self._own and not self._dead(pid):
                    self._seen.add(group)
                    found.add(pid)
        return found

    def _group(self, pid: int) -> str:
        try:
            return (self._proc / str(pid) / "cgroup").read_text()
        except OSError:
            return ""

    def _dead(self, pid: int) -> bool:
        try:
            stat = (self._proc / str(pid) / "stat").read_text()
        except OSError:
            return True
        return stat.rpartition(")")[2].split()[0] in "ZX"


async def _end_of(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        await asyncio.sleep(POLL)
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        with contextlib.suppress(OSError):
            os.close(descriptor)
