"""Connectors that serve more than one address, as the control plane sees them: connected, in step.

A connector asks for its routes again and again and says which revision it has applied; the answer
comes when there is another one. It is always the whole state, so nothing can be missed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from lattice_server.access import same_secret
from lattice_server.clock import now_ms

# Between two questions of a connector that is well there is hardly any time.
PATIENCE_SECONDS = 5.0


@dataclass
class _Seat:
    """One connection of a connector: who has its current enrollment token."""

    token_hash: str
    applied: int = -1
    asking: int = 0
    heard: float = 0.0
    moved: asyncio.Event = field(default_factory=asyncio.Event)


class Connectors:
    """Knows which revision of its workspace's routes each connector has applied."""

    def __init__(self) -> None:
        self._seats: dict[str, _Seat] = {}
        self._revisions: defaultdict[str, int] = defaultdict(now_ms)
        self._news: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def revision(self, workspace: str) -> int:
        """The revision of the workspace's routes. It counts up, also over restarts."""
        return self._revisions[workspace]

    def changed(self, workspace: str) -> int:
        """The routes are others now; to be called once that is committed."""
        self._revisions[workspace] += 1
        self._news.pop(workspace, asyncio.Event()).set()
        return self._revisions[workspace]

    def connected(self, peer_id: str) -> bool:
        """Whether a connector asks, or asked a moment ago."""
        seat = self._seats.get(peer_id)
        if seat is None:
            return False
        return bool(seat.asking) or _now() - seat.heard < PATIENCE_SECONDS

    async def news(
        self, peer_id: str, token_hash: str, workspace: str, applied: int | None, timeout: float
    ) -> None:
        """Take an acknowledgement, and return when there is something else to apply.

        Args:
            peer_id: the connector.
            token_hash: of its enrollment token; another one means another process.
            workspace: its workspace.
            applied: the revision it has applied, if any.
            timeout: seconds to wait at most.
        """
        seat = self._seats.get(peer_id)
        if seat is None or not same_secret(seat.token_hash, token_hash):
            self.forget(peer_id)
            seat = self._seats[peer_id] = _Seat(token_hash)
        if applied is not None and applied <= self.revision(workspace):
            seat.applied = max(seat.applied, applied)
            seat.moved.set()
            seat.moved = asyncio.Event()
        seat.asking += 1
        try:
            async with asyncio.timeout(timeout):
                while applied == self.revision(workspace):
                    await self._news[workspace].wait()
        except TimeoutError:
            pass
        finally:
            seat.asking -= 1
            seat.heard = _now()

    async def wait(self, peer_id: str, revision: int, timeout: float) -> bool:
        """Whether the connector has applied the revision within ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while (seat := self._seats.get(peer_id)) is not None:
                    if seat.applied >= revision:
                        return True
                    await seat.moved.wait()
        except TimeoutError:
            pass
        return False

    def forget(self, peer_id: str) -> None:
        """The connector's identity has ended, or another process has it now."""
        seat = self._seats.pop(peer_id, None)
        if seat is not None:
            seat.moved.set()

    def give_up(self) -> None:
        """Let everybody who waits go: the control plane stops."""
        for workspace in list(self._news):
            self.changed(workspace)


def _now() -> float:
    return asyncio.get_running_loop().time()
