"""The event log: append-only, numbered, what happened to whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import delete, insert, select

from lattice_server.clock import rfc3339
from lattice_server.store import schema, statements
from lattice_server.store.connection import Connection
from lattice_server.store.database import Transaction
from lattice_server.store.records import PeerRecord

EventType = Literal[
    "enrolled",
    "delegated",
    "renewed",
    "revoked",
    "expired",
    "denied",
    "quarantined",
    "token.created",
    "token.rotated",
    "token.revoked",
    "trust.created",
    "trust.revoked",
    "service.created",
    "service.changed",
    "service.removed",
    "policy.changed",
    "egress",
]
# A fact, there as long as events are forgotten: the newest one that may be.
FORGETTING = "events.forgetting"
EVENT_TYPES: tuple[str, ...] = get_args(EventType)


class EventLog:
    """Writes events inside transactions and wakes those who follow."""

    def __init__(self) -> None:
        self._news = asyncio.Event()

    async def append(self, tx: Transaction, events: Sequence[dict[str, Any]]) -> None:
        """Add events (see :func:`event`) to the transaction."""
        for one in events:
            await tx.connection.run(statements.INSERT_EVENT, one)
        if events:
            tx.after_commit.append(self.wake)

    def wake(self) -> None:
        """Let everybody who follows look again."""
        self._news.set()
        self._news = asyncio.Event()

    def news(self) -> asyncio.Event:
        """An event that is set by the next news; take it before looking, then wait for it."""
        return self._news


@asynccontextmanager
async def permit_forgetting(tx: Transaction, newest: int) -> AsyncIterator[None]:
    """Let events up to this number be deleted within; the store refuses it of others."""
    facts = schema.facts
    await tx.connection.execute(insert(facts).values(key=FORGETTING, value=str(newest)))
    yield
    await tx.connection.execute(delete(facts).where(facts.c.key == FORGETTING))


def event(
    event_type: str,
    at: int,
    /,
    *,
    workspace: str | None = None,
    peer_id: str | None = None,
    name: str | None = None,
    **data: Any,
) -> dict[str, Any]:
    """A row of the log. ``data`` holds no secret."""
    return {
        "type": event_type,
        "at": at,
        "workspace_id": workspace,
        "peer_id": peer_id,
        "name": name,
        "data": data,
    }


def peer_event(event_type: str, at: int, peer: PeerRecord, /, **data: Any) -> dict[str, Any]:
    """An event of a peer."""
    return event(
        event_type,
        at,
        workspace=peer.workspace_id,
        peer_id=peer.id,
        name=peer.name,
        **{"kind": peer.kind, "policyPreset": peer.preset, "overlayIP": peer.address, **data},
    )


@dataclass(frozen=True)
class EventFilter:
    """Which events are wanted; what is left out does not matter."""

    workspace: str | None = None
    type: str | None = None
    peer_id: str | None = None


async def read_events(
    connection: Connection, after: int, limit: int, wanted: EventFilter
) -> list[dict[str, Any]]:
    """Events with a greater number than ``after``, oldest first, as the API shows them."""
    events = schema.events.c
    query = select(schema.events).where(events.seq > after).order_by(events.seq).limit(limit)
    for column, value in (
        (events.workspace_id, wanted.workspace),
        (events.type, wanted.type),
        (events.peer_id, wanted.peer_id),
    ):
        if value is not None:
            query = query.where(column == value)
    return [
        {
            "seq": row.seq,
            "time": rfc3339(row.at),
            "type": row.type,
            "workspaceId": row.workspace_id,
            "peerId": row.peer_id,
            "name": row.name,
            "data": row.data,
        }
        for row in await connection.execute(query)
    ]
