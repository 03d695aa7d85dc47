"""Refused flows become evidence, bounded: an attacker's flood must not fill the database.

Each goes into the event log as it happens, and into the table ``denials``, which adds up: who, to
where, how often, first and last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, insert, select, update

from lattice_server.clock import now_ms, rfc3339
from lattice_server.store import schema
from lattice_server.store.connection import Connection
from lattice_server.store.database import Database, Transaction
from lattice_server.store.events import EventLog, event

log = logging.getLogger("lattice.denials")

WINDOW_SECONDS = 60.0
GATHER_SECONDS = 0.2
FLOWS_PER_PEER = 50
FLOWS_IN_ALL = 2000
ROWS_PER_PEER = 500
OTHERS = ("", "", 0)
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


What = tuple[str, str, int]  # destination, protocol, port


@dataclass(slots=True)
class Tally:
    """How often, first and last (ms)."""

    packets: int
    first: int
    last: int

    def add(self, packets: int, at: int) -> None:
        """Count more of it."""
        self.packets += packets
        self.last = at


@dataclass(slots=True)
class _Peer:
    source: str
    written: set[What] = field(default_factory=set)
    fresh: dict[What, Tally] = field(default_factory=dict)
    repeated: dict[What, Tally] = field(default_factory=dict)
    other_flows: int = 0
    others: Tally | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What is to be written of one peer: a flow, or the sum of those that were left out."""

    peer_id: str
    source: str
    what: What | None
    tally: Tally
    flows: int = 1

    def data(self) -> dict[str, object]:
        """The event's data."""
        if self.what is None:
            rest = {"furtherFlows": self.flows, "packets": self.tally.packets}
            return {"source": self.source, **rest}
        destination, protocol, port = self.what
        return {
            "source": self.source,
            "destination": destination,
            "protocol": protocol,
            "port": port,
            "packets": self.tally.packets,
        }


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
        self._unwritten: list[Row] = []
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()  # or what two write at a time would be counted twice

    def report(self, flows: Iterable[Flow]) -> None:
        """Take reports of the gateway."""
        now = now_ms()
        for flow in flows:
            key = flow.peer_id or ""
            if key not in self._peers and len(self._peers) >= PEERS:
                continue
            peer = self._peers.setdefault(key, _Peer(flow.source))
            what = (flow.destination, flow.protocol, flow.port)
            if what in peer.written:
                _count(peer.repeated, what, flow.packets, now)
            elif len(peer.written) < FLOWS_PER_PEER and self._flows < FLOWS_IN_ALL:
                self._flows += 1
                peer.written.add(what)
                _count(peer.fresh, what, flow.packets, now)
                self._wake.set()
            else:
                peer.other_flows += 1
                if peer.others is None:
                    peer.others = Tally(0, now, now)
                peer.others.add(flow.packets, now)

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
        async with self._writing:
            await self._write_alone(whole_window=whole_window)

    async def _write_alone(self, *, whole_window: bool) -> None:
        self._wake.clear()
        self._gather(whole_window=whole_window)
        rows = self._unwritten
        if not rows:
            return
        async with self._database.write() as tx:
            known = await _names(tx, {row.peer_id for row in rows if row.peer_id})
            events = []
            for row in rows:
                workspace, name, preset = known.get(row.peer_id, (None, None, None))
                events.append(
                    event(
                        "denied",
                        now_ms(),
                        workspace=workspace,
                        peer_id=row.peer_id or None,
                        name=name,
                        **{"policyPreset": preset, **row.data()},
                    )
                )
            await self._events.append(tx, events)
            by_peer: dict[str, list[Row]] = {}
            for row in rows:
                by_peer.setdefault(row.peer_id, []).append(row)
            for peer_id, identity in known.items():
                await _add_up(tx, identity, by_peer[peer_id])
        # Only now: a write that fails or is cut short is done again.
        self._unwritten = self._unwritten[len(rows) :]

    def _gather(self, *, whole_window: bool) -> None:
        rows = list(self._unwritten)
        for peer_id, peer in self._peers.items():
            counted = [*peer.fresh.items(), *(peer.repeated.items() if whole_window else ())]
            rows += [Row(peer_id, peer.source, what, tally) for what, tally in counted]
            peer.fresh = {}
            if whole_window and peer.others is not None:
                rows.append(Row(peer_id, peer.source, None, peer.others, peer.other_flows))
        if whole_window:
            self._peers.clear()
            self._flows = 0
        self._unwritten = rows[:UNWRITTEN]


def _count(tallies: dict[What, Tally], what: What, packets: int, now: int) -> None:
    tallies.setdefault(what, Tally(0, now, now)).add(packets, now)


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


async def _add_up(tx: Transaction, identity: tuple[str, str, str], rows: list[Row]) -> None:
    """Add to the sums of one peer; beyond :data:`ROWS_PER_PEER` flows to that of all others."""
    table = schema.denials
    count = await tx.connection.scalar(
        select(func.count()).select_from(table).where(table.c.peer_id == rows[0].peer_id)
    )
    room = ROWS_PER_PEER - (count or 0)
    workspace, name, _ = identity
    for row in rows:
        if row.what is not None and await _raise_sum(tx, row, row.what):
            continue
        what = row.what if row.what is not None and room > 0 else OTHERS
        if what == OTHERS and await _raise_sum(tx, row, OTHERS):
            continue
        destination, protocol, port = what
        await tx.connection.execute(
            insert(table).values(
                peer_id=row.peer_id,
                workspace_id=workspace,
                name=name,
                source=row.source,
                destination=destination,
                protocol=protocol,
                port=port,
                packets=row.tally.packets,
                first_at=row.tally.first,
                last_at=row.tally.last,
            )
        )
        room -= 1


async def _raise_sum(tx: Transaction, row: Row, what: What) -> bool:
    """Add to a sum, if there is one."""
    sums, (destination, protocol, port) = schema.denials.c, what
    done = await tx.connection.execute(
        update(schema.denials)
        .where(
            sums.peer_id == row.peer_id,
            sums.destination == destination,
            sums.protocol == protocol,
            sums.port == port,
        )
        .values(packets=sums.packets + row.tally.packets, last_at=row.tally.last)
    )
    return bool(done.rowcount)


async def read_sums(
    connection: Connection, workspace: str | None, peer_id: str | None, after: int, limit: int
) -> tuple[list[dict[str, Any]], int | None]:
    """A page of sums as the API shows them, and where the next page starts.

    One whose ``destination`` is ``None`` is the sum of all flows for which there was no room.
    """
    sums = schema.denials.c
    query = select(schema.denials).where(sums.n > after).order_by(sums.n).limit(limit + 1)
    if workspace is not None:
        query = query.where(sums.workspace_id == workspace)
    if peer_id is not None:
        query = query.where(sums.peer_id == peer_id)
    rows = (await connection.execute(query)).all()
    items = [
        {
            "peerId": row.peer_id,
            "workspaceId": row.workspace_id,
            "name": row.name,
            "source": row.source,
            "destination": row.destination or None,
            "protocol": row.protocol or None,
            "port": row.port if row.destination else None,
            "packets": row.packets,
            "firstAt": rfc3339(row.first_at),
            "lastAt": rfc3339(row.last_at),
        }
        for row in rows[:limit]
    ]
    return items, rows[limit - 1].n if len(rows) > limit else None
