"""Reads that several parts share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import groupby

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from lattice_server import policy
from lattice_server.hub import PeerObject
from lattice_server.store import schema
from lattice_server.store.records import PeerRecord, ServiceRecord


async def services_of(connection: AsyncConnection, workspace: str) -> list[ServiceRecord]:
    """The services of a workspace, by name."""
    rows = await connection.execute(
        select(schema.services)
        .where(schema.services.c.workspace_id == workspace)
        .order_by(schema.services.c.name)
    )
    return [ServiceRecord.of(row) for row in rows]


async def live_agents(
    connection: AsyncConnection, workspace: str, presets: Collection[str], now: int
) -> list[PeerRecord]:
    """The living agents of a workspace that have one of these presets."""
    if not presets:
        return []
    peers = schema.peers.c
    rows = await connection.execute(
        select(schema.peers).where(
            peers.workspace_id == workspace,
            peers.state == "active",
            peers.preset.in_(presets),
            peers.kind == "agent",
            peers.expires_at > now,
        )
    )
    return [PeerRecord.of(row) for row in rows]


async def peer_by_id(connection: AsyncConnection, peer_id: str) -> PeerRecord | None:
    """A peer, also one that has ended."""
    row = (
        await connection.execute(select(schema.peers).where(schema.peers.c.id == peer_id))
    ).one_or_none()
    return PeerRecord.of(row) if row else None


async def service_by_name(
    connection: AsyncConnection, workspace: str, name: str
) -> ServiceRecord | None:
    """A service of a workspace."""
    services = schema.services.c
    row = (
        await connection.execute(
            select(schema.services).where(services.workspace_id == workspace, services.name == name)
        )
    ).one_or_none()
    return ServiceRecord.of(row) if row else None


async def peer_objects(
    connection: AsyncConnection,
    workspace: str,
    peers: Iterable[PeerRecord],
    now: int,
    services: list[ServiceRecord] | None = None,
) -> list[PeerObject]:
    """What the gateway has to know of these peers of one workspace, as the store has them now."""
    peers = list(peers)
    agents = [peer for peer in peers if peer.kind == "agent"]
    if agents and services is None:
        services = await services_of(connection, workspace)
    rules = [service.rule() for service in services or ()]
    reachable = []
    if any(peer.preset != "sandboxed" for peer in agents):
        reachable = [
            peer.rule()
            for peer in await live_agents(connection, workspace, policy.ACCEPTS_INGRESS, now)
        ]
    return [
        peer_object(
            peer,
            policy.compile_grants(peer.rule(), rules, reachable) if peer.kind == "agent" else (),
        )
        for peer in peers
    ]


def peer_object(peer: PeerRecord, grants: tuple[policy.Grant, ...]) -> PeerObject:
    """A record and its grants as the gateway's peer."""
    return PeerObject(peer.id, peer.public_key, peer.address, peer.expires_at, grants)


async def ripple(
    connection: AsyncConnection,
    workspace: str,
    changes: Sequence[policy.AgentRule | policy.ServiceRule],
    now: int,
) -> list[PeerObject]:
    """The other agents of the workspace whose grants change with these, as they are to be now."""
    presets = frozenset[str]().union(*map(policy.affected_presets, changes))
    candidates = await live_agents(connection, workspace, presets, now)
    rules = [candidate.rule() for candidate in candidates]
    touched = {rule.id for change in changes for rule in policy.affected(change, rules)}
    if not touched:
        return []
    return await peer_objects(
        connection, workspace, [c for c in candidates if c.id in touched], now
    )


async def whole_state(connection: AsyncConnection, now: int) -> list[PeerObject]:
    """Every living peer of every workspace, for a gateway that connects."""
    services: dict[str, list[ServiceRecord]] = {}
    for row in await connection.execute(select(schema.services)):
        services.setdefault(row.workspace_id, []).append(ServiceRecord.of(row))
    peers = schema.peers.c
    rows = await connection.execute(
        select(schema.peers)
        .where(peers.state == "active", peers.expires_at > now)
        .order_by(peers.workspace_id)
    )
    state: list[PeerObject] = []
    for workspace, group in groupby(map(PeerRecord.of, rows), key=lambda p: p.workspace_id):
        members = list(group)
        compiled = policy.compile_workspace(
            policy.Workspace(
                {s.name: s.rule() for s in services.get(workspace, ())},
                {peer.id: peer.rule() for peer in members if peer.kind == "agent"},
            )
        )
        state.extend(peer_object(peer, compiled.get(peer.id, ())) for peer in members)
    return state
