"""From a committed change to one that the gateway has, or back to what was before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sqlalchemy import delete, update

from lattice_server import delegation, endings, names
from lattice_server.clock import now_ms
from lattice_server.hub import PeerObject
from lattice_server.presets import BUILT_IN, NOTHING, Presets
from lattice_server.problems import gateway_unavailable
from lattice_server.store import schema, statements
from lattice_server.store.database import Transaction
from lattice_server.store.queries import (
    connector_of,
    peer_by_id,
    peer_objects,
    presets_of_workspace,
    ripple,
    services_of,
)
from lattice_server.store.records import PeerRecord, ServiceRecord, TokenRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

log = logging.getLogger("lattice.enrollment")


@dataclass
class Publication:
    """A committed change: what to answer, what to wait for, what was there before.

    Attributes:
        ingress: who may connect to the peer, in words.
        connector: id of the egress connector that has to serve the peer's host names, if any.
        routes: the revision that it has to have for that.
    """

    peer: PeerRecord
    before: PeerRecord | None
    services: list[ServiceRecord]
    object: PeerObject | None = None
    revision: int = 0
    ingress: list[str] = field(default_factory=list)
    connector: str | None = None
    routes: int = 0


async def store(tx: Transaction, peer: PeerRecord, before: PeerRecord | None = None) -> None:
    """Overwrite the row of a peer; only what differs from ``before``, where that is known."""
    changes = peer.values() if before is None else peer.changes(before)
    if changes:
        statement = statements.update_peer(tuple(changes))
        await tx.connection.run(statement, {**changes, "peer": peer.id})


async def publish(
    control: ControlPlane, tx: Transaction, peer: PeerRecord, before: PeerRecord | None
) -> Publication:
    """Prepare what the gateway hears on commit: the peer, and agents whose grants it changes."""
    now = now_ms()
    services: list[ServiceRecord] = []
    presets: Presets = BUILT_IN
    if peer.kind == "agent":
        services = await services_of(tx.connection, peer.workspace_id)
        presets = await presets_of_workspace(tx.connection, peer.workspace_id)
    [own] = await peer_objects(tx.connection, peer.workspace_id, [peer], now, services, presets)
    others: list[PeerObject] = []
    if peer.kind == "agent" and before is None:
        others = await ripple(tx.connection, peer.workspace_id, [peer.rule()], now)
    done = Publication(peer, before, services, own)
    done.ingress = sorted(presets.get(peer.preset, NOTHING).ingress)
    named = any("address" in rule for rule in peer.allow)
    if named:
        connector = await connector_of(tx.connection, peer.workspace_id, now)
        if connector is not None:
            done.connector = connector.id
            others += await peer_objects(tx.connection, peer.workspace_id, [connector], now)

    def tell() -> None:
        if named and before is None:
            done.routes = control.connectors.changed(peer.workspace_id)
        done.revision = control.hub.publish([own, *others])

    tx.after_commit.append(tell)
    return done


async def wait_or_undo(
    control: ControlPlane,
    done: Publication,
    token: TokenRecord | None,
    abandoned: Callable[[], Awaitable[bool]] | None = None,
) -> None:
    """Return once the gateway has the change, or take it back.

    Args:
        control: the control plane.
        done: what was committed.
        token: the token of which a use was counted, to give it back.
        abandoned: whether the caller has gone meanwhile, so that nobody hears the answer; the
            change is then taken back as well.

    Raises:
        ApiProblem: ``gateway_unavailable`` or ``egress_unavailable`` when it was taken back.
    """
    seconds = control.settings.gateway_wait.total_seconds()
    try:
        if done.connector is None or done.before is not None:
            acknowledged, served = await control.hub.wait(done.revision, seconds), True
        else:
            acknowledged, served = await asyncio.gather(
                control.hub.wait(done.revision, seconds),
                control.connectors.wait(done.connector, done.routes, seconds),
            )
    except asyncio.CancelledError:
        await _finish(_undo(control, done, token))
        raise
    if not acknowledged:
        await _finish(_undo(control, done, token))
        raise gateway_unavailable(
            f"the gateway did not take up the change within {seconds:g} s, so it was undone; "
            "try again"
        )
    if not served:
        await _finish(_undo(control, done, token))
        raise names.unavailable(
            f"the egress connector did not take up the host names within {seconds:g} s, so "
            "nothing was enrolled; look at its log, and try again"
        )
    if abandoned is not None and await abandoned():
        log.info("%s was not waited for and is taken back", done.peer.id)
        await _finish(_undo(control, done, token))


async def _finish(work: Awaitable[None]) -> None:
    """Carry on to the end even if this task is cancelled."""
    await asyncio.shield(asyncio.ensure_future(work))


async def _undo(control: ControlPlane, done: Publication, token: TokenRecord | None) -> None:
    """Take a published change back, unless somebody has changed the peer again since."""
    async with control.database.write() as tx:
        now = await peer_by_id(tx.connection, done.peer.id)
        if now is None or now.version != done.peer.version or now.state != "active":
            return
        before = await _within_its_parent(tx, done.before)
        if before is not None and before.alive(now_ms()):
            peer = replace(before, version=now.version + 1)
            await store(tx, peer, now)
            if peer.expires_at < now.expires_at:
                await delegation.shorten_descendants(control, tx, peer)
            await publish(control, tx, peer, before)
            return
        await endings.end_peers(control, tx, [now], "revoked", by="server", reason="gateway")
        if done.before is not None:
            return
        await tx.connection.execute(delete(schema.peers).where(schema.peers.c.id == now.id))
        if token is not None:
            tokens = schema.tokens.c
            await tx.connection.execute(
                update(schema.tokens).where(tokens.id == token.id).values(used=tokens.used - 1)
            )


async def _within_its_parent(tx: Transaction, before: PeerRecord | None) -> PeerRecord | None:
    """What was there before, with no date beyond its parent's, which may have moved since."""
    if before is None or before.parent_id is None:
        return before
    parent = await peer_by_id(tx.connection, before.parent_id)
    return delegation.cut_to(before, parent) if parent is not None else None
