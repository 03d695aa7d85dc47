"""Once a minute: what has expired is removed, what has rested is freed, what is old is forgotten.

The gateway cuts each identity off at its own deadline; this is what makes the store agree when the
gateway's report was lost.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select

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
        await _forget_events(control)
    return expired


async def _forget_peers(control: ControlPlane) -> None:
    peers = schema.peers.c
    limit = now_ms() - to_ms(control.settings.retention)
    old = select(peers.n).where(peers.state != "active", peers.ended_at < limit).limit(BATCH)
    async with control.database.write() as tx:
        await tx.connection.execute(delete(schema.peers).where(peers.n.in_(old)))


async def _forget_events(control: ControlPlane) -> None:
    events = schema.events.c
    limit = now_ms() - to_ms(control.settings.event_retention)
    async with control.database.write() as tx:
        newest = await tx.connection.scalar(select(func.max(events.seq))) or 0
        too_many = newest - control.settings.event_limit
        old = (
            select(events.seq)
            .where((events.at < limit) | (events.seq <= too_many))
            .limit(10 * BATCH)
        )
        await tx.connection.execute(delete(schema.events).where(events.seq.in_(old)))
