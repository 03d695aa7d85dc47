"""Quarantine: an agent that is refused too often in a window is ended, with all that came from it.

What a sub-agent is refused counts for those that it comes from as well, so that delegating does
not multiply what may be tried.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import select

from lattice_sdk.durations import format_duration
from lattice_server import endings
from lattice_server.clock import now_ms
from lattice_server.denials import Flow
from lattice_server.store import schema
from lattice_server.store.events import peer_event
from lattice_server.store.queries import ancestors, peer_by_id
from lattice_server.store.records import PeerRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

log = logging.getLogger("lattice.quarantine")

PEERS = 20_000  # that are watched at a time
REPORTS = 100_000  # that wait to be counted


@dataclass(slots=True)
class Window:
    """Counts within the last seconds. Pure: the time is handed in."""

    seconds: float
    total: int = 0
    _counts: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now: float, count: int) -> int:
        """Count some more; how many there are in the window now."""
        self._counts.append((now, count))
        self.total += count
        while self._counts[0][0] <= now - self.seconds:
            self.total -= self._counts.popleft()[1]
        return self.total

    def quiet(self, now: float) -> bool:
        """Whether all of it is over."""
        return not self._counts or self._counts[-1][0] <= now - self.seconds


class Quarantine:
    """Counts refused packets and ends who exceeds ``denial_limit`` in ``denial_window``."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._limit = control.settings.denial_limit
        self._seconds = control.settings.denial_window.total_seconds()
        self._reports: list[tuple[str, int, float]] = []
        self._windows: dict[str, Window] = {}
        self._lines: dict[str, tuple[str, ...]] = {}
        self._wake = asyncio.Event()

    def report(self, flows: Iterable[Flow]) -> None:
        """Take reports of the gateway. Does not wait."""
        if not self._limit:
            return
        now = time.monotonic()
        for flow in flows:
            if flow.peer_id and len(self._reports) < REPORTS:
                self._reports.append((flow.peer_id, flow.packets, now))
        self._wake.set()

    async def run(self) -> None:
        """Count, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            reports, self._reports = self._reports, []
            try:
                for peer_id in await self._count(reports):
                    await self._end(peer_id)
            except Exception:
                log.exception("refused flows could not be counted")
                await asyncio.sleep(1)

    async def _count(self, reports: list[tuple[str, int, float]]) -> list[str]:
        """Add the reports up; who is over the limit now."""
        exceeded: dict[str, None] = {}
        for peer_id, packets, at in reports:
            for one in await self._line(peer_id):
                window = self._windows.get(one)
                if window is None:
                    self._make_room(at)
                    window = self._windows[one] = Window(self._seconds)
                if window.add(at, packets) > self._limit:
                    exceeded[one] = None
        return list(exceeded)

    async def _line(self, peer_id: str) -> tuple[str, ...]:
        """The peer and those that it comes from; nobody when it is no living agent."""
        if peer_id not in self._lines:
            async with self._control.database.read() as connection:
                peer = await peer_by_id(connection, peer_id)
                above = await ancestors(connection, [peer]) if peer else []
            if peer is None or peer.kind != "agent":
                return ()
            self._lines[peer_id] = (peer_id, *(one.id for one in above))
        return self._lines[peer_id]

    def _make_room(self, now: float) -> None:
        if len(self._windows) < PEERS:
            return
        self._windows = {k: w for k, w in self._windows.items() if not w.quiet(now)}
        self._lines.clear()
        while len(self._windows) >= PEERS:
            del self._windows[next(iter(self._windows))]

    async def _end(self, peer_id: str) -> None:
        control, peers = self._control, schema.peers.c
        window = self._windows.pop(peer_id, None)
        self._lines.pop(peer_id, None)
        async with control.database.write() as tx:
            row = (
                await tx.connection.execute(
                    select(schema.peers).where(peers.id == peer_id, peers.state == "active")
                )
            ).one_or_none()
            if row is None:
                return
            peer = PeerRecord.of(row)
            count = window.total if window else 0
            await control.events.append(
                tx,
                [
                    peer_event(
                        "quarantined",
                        now_ms(),
                        peer,
                        packets=count,
                        limit=self._limit,
                        window=format_duration(control.settings.denial_window),
                    )
                ],
            )
            await endings.end_peers(control, tx, [peer], "revoked", by="server", reason="denials")
        control.metrics.quarantined.inc()
        log.warning("%s (%s) was refused %s packets and is ended", peer.id, peer.name, count)
