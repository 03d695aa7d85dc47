"""What programs leave on the machine and in the fabric."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from lattice_engine import EngineClient
from lattice_sdk.testing.leftovers import Leftovers, files
from lattice_server.fabric import Fabric
from support.waiting import children, process_state

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


class Left:
    """Processes, namespaces, files and identities that have come since its making.

    Args:
        fabric: whose control plane and gateway are asked.
        temporary: where programs make temporary files; empty.
    """

    def __init__(self, fabric: Fabric, temporary: Path) -> None:
        self._fabric, self._temporary = fabric, temporary
        self._leftovers = Leftovers(temporary)
        self._agents, self._gateway_peers = agents(fabric), gateway_peers(fabric)

    def note(self) -> None:
        """Remember the processes that there are now, and their namespaces: they must be gone."""
        self._leftovers.note()

    def found(self) -> list[str]:
        """What is there now; of processes also those whose parent has ended, see `watched`."""
        self.note()
        return [
            *self._leftovers.of_program(),
            *(f"file {path}" for path in files(self._temporary)),
            *(f"{peer} at the control plane" for peer in agents(self._fabric) - self._agents),
            *(
                f"{peer} at the gateway"
                for peer in gateway_peers(self._fabric) - self._gateway_peers
            ),
        ]


@contextlib.contextmanager
def watched(fabric: Fabric, temporary: Path) -> Iterator[Left]:
    """Until the block's end, whatever a child leaves running becomes a child of this process."""
    before = children(ended=True)
    _be_subreaper(True)
    try:
        yield Left(fabric, temporary)
    finally:
        _be_subreaper(False)
        for pid in children(ended=True) - before:
            if process_state(pid) == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def agents(fabric: Fabric) -> set[str]:
    """Peers of agents that the control plane has."""
    page = fabric.request("GET", "/api/v1/peers?limit=500")
    return {peer["peerId"] for peer in page["items"] if peer["kind"] == "agent"}


def gateway_peers(fabric: Fabric) -> set[str]:
    """All peers that the gateway's data plane has."""
    client = EngineClient(fabric.gateway_control)
    try:
        return {str(peer["id"]) for peer in client.peers()}
    finally:
        client.close()


def _be_subreaper(be: bool) -> None:
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, int(be), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
