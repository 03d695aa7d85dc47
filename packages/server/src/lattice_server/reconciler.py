"""Once a minute: what has expired is removed, what has rested is freed, what is old is forgotten.

The gateway cuts each identity off at its own deadline; this is what makes the store agree when the
gateway's report was lost.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sqlalchemy import Column, Table, delete, func, select

from lattice_server import endings
from lattice_server.clock import now_ms, to_ms
from lattice_server.store import schema

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

log = logging.getLogger("lattice.reconciler")

BATCH = 1000


async def run(control: ControlPlane) -> None:
    """Reconcile at the interval of the settings, until cancelled."""
    interval = control.settings.reconcile_interval.total_seconds()
    while interval > 0:
        await asyncio.sleep(interval)
        try:
            await reconcile(control)
        except Exception:
            log.exception("the reconciler failed and tries again in %s s", interval)


async def reconcile(control: ControlPlane) -> int:
    """One pass. Each step is a short transaction, so that enrollments go on in between.

    Returns:
        How many peers had expired.
    """
    with control.metrics.reconciler_seconds.time():
        expired = 0
        while count := await endings.expire_due(control, limit=BATCH):
            expired += count
        async with control.database.write() as tx:
            await control.release_rested(tx)
        await _forget_peers(control)
        await _forget_delegations(control)
        await _forget_rows(control, schema.events, schema.events.c.seq, schema.events.c.at)
        await _forget_rows(control, schema.denials, schema.denials.c.n, schema.denials.c.last_at)
    return expired


async def _forget_peers(control: ControlPlane) -> None:
    peers = schema.peers.c
    limit = now_ms() - to_ms(control.settings.retention)
    old = select(peers.n).where(peers.state != "active", peers.ended_at < limit).limit(BATCH)
    async with control.database.write() as tx:
        await tx.connection.execute(delete(schema.peers).where(peers.n.in_(old)))


async def _forget_delegations(control: ControlPlane) -> None:
    """Tokens for sub-agents: what came by them is in the event log."""
    tokens = schema.tokens.c
    limit = now_ms() - to_ms(control.settings.retention)
    old = select(tokens.n).where(tokens.kind == "delegation", tokens.expires_at < limit)
    async with control.database.write() as tx:
        await tx.connection.execute(delete(schema.tokens).where(tokens.n.in_(old.limit(BATCH))))


async def _forget_rows(
    control: ControlPlane, table: Table, number: Column[int], at: Column[int]
) -> None:
    """Evidence that is older than it is to be, or more than there is to be."""
    limit = now_ms() - to_ms(control.settings.event_retention)
    async with control.database.write() as tx:
        newest = await tx.connection.scalar(select(func.max(number))) or 0
        too_many = newest - control.settings.event_limit
        old = select(number).where((at < limit) | (number <= too_many)).limit(10 * BATCH)
        await tx.connection.execute(delete(table).where(number.in_(old)))
