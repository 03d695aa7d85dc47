"""How identities end: revoked by somebody, expired, gone with their service or their parent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import select

from lattice_server import names
from lattice_server.clock import now_ms, rfc3339, to_ms
from lattice_server.hub import PeerObject
from lattice_server.policy import AgentRule
from lattice_server.store import schema, statements
from lattice_server.store.database import Transaction
from lattice_server.store.events import peer_event
from lattice_server.store.queries import connector_of, descendants, peer_objects, ripple
from lattice_server.store.records import PeerRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

# The gateway's clock for a deadline starts when a message arrives, ours when it is sent.
EXPIRY_TOLERANCE_MS = 250


async def end_peers(
    control: ControlPlane, tx: Transaction, peers: Sequence[PeerRecord], event: str, **data: object
) -> None:
    """End living peers: state, address to quarantine, event; the gateway hears of it on commit.

    Agents that descend from them by delegation end with them, in the same change.

    Args:
        control: the control plane.
        tx: the transaction it belongs to.
        peers: peers whose state is ``active``.
        event: ``revoked`` or ``expired``.
        data: further event data, such as ``reason``.
    """
    if not peers:
        return
    now = now_ms()
    state = "expired" if event == "expired" else "deleted"
    own = {peer.id for peer in peers}
    inherited = [p for p in await descendants(tx.connection, own) if p.id not in own]
    peers = [*peers, *inherited]
    rested = now + to_ms(control.settings.quarantine)
    for peer in peers:
        await tx.connection.run(
            statements.END_PEER, {"peer": peer.id, "state": state, "ended_at": now}
        )
        # A service keeps its address as long as the service is defined.
        if peer.kind == "agent":
            await tx.connection.run(statements.FREE_ADDRESS, {"of": peer.address, "at": rested})
    await control.events.append(
        tx,
        [
            peer_event(
                event,
                now,
                peer,
                **{
                    "expiresAt": rfc3339(peer.expires_at),
                    **(data if peer.id in own else _with_parent(peer)),
                },
            )
            for peer in peers
        ],
    )
    changes: dict[str, list[AgentRule]] = {}
    for peer in peers:
        if peer.kind == "agent":
            changes.setdefault(peer.workspace_id, []).append(peer.rule())
    touched: list[PeerObject] = []
    for workspace, rules in changes.items():
        touched += await ripple(tx.connection, workspace, rules, now)
    unnamed = await names.release(control, tx, peers)
    for workspace in unnamed:
        connector = await connector_of(tx.connection, workspace, now)
        if connector is not None:
            touched += await peer_objects(tx.connection, workspace, [connector], now)
    gone = [peer.id for peer in peers]

    def tell() -> None:
        control.hub.publish(touched, gone)
        for workspace in unnamed:
            control.connectors.changed(workspace)
        for peer_id in gone:
            control.connectors.forget(peer_id)

    tx.after_commit.append(tell)
    control.metrics.ended.labels(event).inc(len(peers))


def _with_parent(peer: PeerRecord) -> dict[str, object]:
    return {"by": "server", "reason": "parent", "parentRef": peer.parent_id}


async def expire_due(control: ControlPlane, *, limit: int) -> int:
    """End peers whose time is over; how many (at most ``limit``)."""
    table = schema.peers.c
    async with control.database.write() as tx:
        rows = await tx.connection.execute(
            select(schema.peers)
            .where(table.state == "active", table.expires_at <= now_ms())
            .order_by(table.expires_at)
            .limit(limit)
        )
        due = [PeerRecord.of(row) for row in rows]
        await end_peers(control, tx, due, "expired")
    return len(due)


async def expire_reported(control: ControlPlane, peer_ids: Sequence[str]) -> None:
    """End peers that the gateway has cut off at their deadline.

    One that was renewed at the last moment stays: the renewal is on its way to the gateway.
    """
    table = schema.peers.c
    async with control.database.write() as tx:
        rows = await tx.connection.execute(
            select(schema.peers).where(
                table.id.in_(peer_ids),
                table.state == "active",
                table.expires_at <= now_ms() + EXPIRY_TOLERANCE_MS,
            )
        )
        await end_peers(control, tx, [PeerRecord.of(row) for row in rows], "expired")
