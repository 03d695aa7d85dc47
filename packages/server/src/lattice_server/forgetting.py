"""What the store forgets, and whose: what is old, and where there is too much, whoever has most.

Each step is a short transaction, and there are as many of them as it takes. What has to be counted
is counted in a view for reading, beside everything else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Column, ColumnElement, Table, delete, func, select, true

from lattice_server.clock import now_ms, to_ms
from lattice_server.store import schema
from lattice_server.store.events import permit_forgetting

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

AT_ONCE = 500  # rows in one transaction: a few milliseconds
NUMBERS_AT_ONCE = 50_000  # in memory


async def forget(control: ControlPlane) -> None:
    """Forget ended peers, tokens for sub-agents, events and denials as the settings say."""
    peers, tokens = schema.peers.c, schema.tokens.c
    limit = now_ms() - to_ms(control.settings.retention)
    ended = (peers.state != "active") & (peers.ended_at < limit)
    await _forget(control, schema.peers, peers.n, ended)
    # What came by them is in the event log.
    spent = (tokens.kind == "delegation") & (tokens.expires_at < limit)
    await _forget(control, schema.tokens, tokens.n, spent)
    old = now_ms() - to_ms(control.settings.event_retention)
    for table, number, at in (
        (schema.events, schema.events.c.seq, schema.events.c.at),
        (schema.denials, schema.denials.c.n, schema.denials.c.last_at),
    ):
        await _forget(control, table, number, at < old)
        await _share(control, table, number, true())
    await _share(control, schema.peers, peers.n, peers.state != "active")


def shares(counts: Mapping[str | None, int], limit: int) -> dict[str | None, int]:
    """How many rows each workspace has too many, so that no more than ``limit`` stay in all.

    All have the same share; what one does not need of its own is shared by the others. So whoever
    fills the log loses rows of its own, and nobody within its share loses any.

    >>> shares({"busy": 900, "quiet": 40, None: 10}, 500)
    {'busy': 450}
    """
    left, share = limit, 0
    ascending = sorted(counts.values())
    for place, count in enumerate(ascending):
        share = left // (len(ascending) - place)
        if count > share:
            break
        left -= count
    else:
        return {}
    return {of: count - share for of, count in counts.items() if count > share}


async def _forget(
    control: ControlPlane, table: Table, number: Column[int], which: ColumnElement[bool]
) -> None:
    """Delete the rows that are so."""
    numbers: Sequence[int] = [0]
    while numbers:
        async with control.database.read() as connection:
            found = await connection.scalars(select(number).where(which).limit(NUMBERS_AT_ONCE))
            numbers = found.all()
        await _delete(control, table, number, numbers)


async def _share(
    control: ControlPlane, table: Table, number: Column[int], which: ColumnElement[bool]
) -> None:
    """Delete the oldest of these rows of the workspaces that have more than their share."""
    limit, of = control.settings.event_limit, table.c.workspace_id
    span = select(func.max(number) - func.min(number) + 1)
    async with control.database.read() as connection:
        # There are at most as many as that, which is known at once.
        if (await connection.scalar(span) or 0) <= limit:
            return
        rows = await connection.execute(
            select(of.label("whose"), func.count().label("many")).where(which).group_by(of)
        )
        counts: dict[str | None, int] = {row.whose: row.many for row in rows}
    excess = shares(counts, limit)
    for workspace, count in excess.items():
        left = count
        while left > 0:
            its = of.is_(None) if workspace is None else of == workspace
            query = select(number).where(which, its)
            async with control.database.read() as connection:
                oldest = query.order_by(number).limit(min(left, NUMBERS_AT_ONCE))
                numbers = (await connection.scalars(oldest)).all()
            await _delete(control, table, number, numbers)
            left = left - len(numbers) if numbers else 0


async def _delete(
    control: ControlPlane, table: Table, number: Column[int], numbers: Collection[int]
) -> None:
    ordered = sorted(numbers)
    for start in range(0, len(ordered), AT_ONCE):
        some = ordered[start : start + AT_ONCE]
        async with control.database.write() as tx:
            if table is schema.events:
                async with permit_forgetting(tx, some[-1]):
                    await tx.connection.execute(delete(table).where(number.in_(some)))
            else:
                await tx.connection.execute(delete(table).where(number.in_(some)))
