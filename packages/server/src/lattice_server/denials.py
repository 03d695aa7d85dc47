"""Refused flows become events, bounded: an attacker's flood must not fill the database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import select

from lattice_server.clock import now_ms
from lattice_server.store import schema
from lattice_server.store.database import Database, Transaction
from lattice_server.store.events import EventLog, event

log = logging.getLogger("lattice.denials")

WINDOW_SECONDS = 60.0
GATHER_SECONDS = 0.2
FLOWS_PER_PEER = 50
FLOWS_IN_ALL = 2000
PEERS = 10_000
UNWRITTEN = 20_000


@dataclass(frozen=True, slots=True)
class Flow:
    """A refused flow as the gateway reports it."""

    peer_id: str | None
    source: str
    destination: str
    protocol: str
    port: int
    packets: int


@dataclass(slots=True)
class _Peer:
    source: str
    written: set[tuple[str, str, int]] = field(default_factory=set)
    fresh: dict[tuple[str, str, int], int] = field(default_factory=dict)
    repeated: dict[tuple[str, str, int], int] = field(default_factory=dict)
    other_flows: int = 0
    other_packets: int = 0


class Denials:
    """Gathers reports and writes each flow once, its repetitions once a window, the rest as a sum.

    In a window of a minute a peer causes at most :data:`FLOWS_PER_PEER` events of new flows, as
    many of repetitions, and one that counts what was left out. All peers together cause at most
    :data:`FLOWS_IN_ALL` of new flows.
    """

    def __init__(self, database: Database, events: EventLog) -> None:
        self._database, self._events = database, events
        self._peers: dict[str, _Peer] = {}
        self._flows = 0
        self._unwritten: list[tuple[str, dict[str, object]]] = []
        self._wake = asyncio.Event()

    def report(self, flows: Iterable[Flow]) -> None:
        """Take reports of the gateway."""
        for flow in flows:
            key = flow.peer_id or ""
            if key not in self._peers and len(self._peers) >= PEERS:
                continue
            peer = self._peers.setdefault(key, _Peer(flow.source))
            what = (flow.destination, flow.protocol, flow.port)
            if what in peer.written:
                peer.repeated[what] = peer.repeated.get(what, 0) + flow.packets
            elif len(peer.written) < FLOWS_PER_PEER and self._flows < FLOWS_IN_ALL:
                self._flows += 1
                peer.written.add(what)
                peer.fresh[what] = flow.packets
                self._wake.set()
            else:
                peer.other_flows += 1
                peer.other_packets += flow.packets

    async def run(self) -> None:
        """Write new flows soon and the rest when a window ends, until cancelled."""
        loop = asyncio.get_running_loop()
        window_ends = loop.time() + WINDOW_SECONDS
        while True:
            try:
                async with asyncio.timeout_at(window_ends):
                    await self._wake.wait()
                await asyncio.sleep(GATHER_SECONDS)
                await self._write(whole_window=False)
            except TimeoutError:
                window_ends = loop.time() + WINDOW_SECONDS
                try:
                    await self._write(whole_window=True)
                except Exception:
                    log.exception("denied flows could not be written")
            except Exception:
                log.exception("denied flows could not be written")
                await asyncio.sleep(1)

    async def flush(self) -> None:
        """Write everything that is pending."""
        await self._write(whole_window=True)

    async def _write(self, *, whole_window: bool) -> None:
        self._wake.clear()
        self._gather(whole_window=whole_window)
        rows = self._unwritten
        if not rows:
            return
        async with self._database.write() as tx:
            known = await _names(tx, {peer_id for peer_id, _ in rows if peer_id})
            events = []
            for peer_id, data in rows:
                workspace, name, preset = known.get(peer_id, (None, None, None))
                events.append(
                    event(
                        "denied",
                        now_ms(),
                        workspace=workspace,
                        peer_id=peer_id or None,
                        name=name,
                        **{"policyPreset": preset, **data},
                    )
                )
            await self._events.append(tx, events)
        # Only now: a write that fails or is cut short is done again.
        self._unwritten = self._unwritten[len(rows) :]

    def _gather(self, *, whole_window: bool) -> None:
        rows = list(self._unwritten)
        for peer_id, peer in self._peers.items():
            counted = [*peer.fresh.items(), *(peer.repeated.items() if whole_window else ())]
            rows += [(peer_id, _flow_data(peer.source, *flow)) for flow in counted]
            peer.fresh = {}
            if whole_window and peer.other_flows:
                rest = {"furtherFlows": peer.other_flows, "packets": peer.other_packets}
                rows.append((peer_id, {"source": peer.source, **rest}))
        if whole_window:
            self._peers.clear()
            self._flows = 0
        self._unwritten = rows[:UNWRITTEN]


async def _names(tx: Transaction, ids: set[str]) -> dict[str, tuple[str, str, str]]:
    """Workspace, name and preset of these peers."""
    peers = schema.peers.c
    ordered = sorted(ids)
    known: dict[str, tuple[str, str, str]] = {}
    for start in range(0, len(ordered), 500):
        found = await tx.connection.execute(
            select(peers.id, peers.workspace_id, peers.name, peers.preset).where(
                peers.id.in_(ordered[start : start + 500])
            )
        )
        known.update({row.id: (row.workspace_id, row.name, row.preset) for row in found})
    return known


def _flow_data(source: str, what: tuple[str, str, int], packets: int) -> dict[str, object]:
    destination, protocol, port = what
    return {
        "source": source,
        "destination": destination,
        "protocol": protocol,
        "port": port,
        "packets": packets,
    }
