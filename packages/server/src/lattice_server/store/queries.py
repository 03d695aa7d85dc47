"""Reads that several parts share."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import select

from lattice_server import attenuation, policy
from lattice_server.hub import PeerObject
from lattice_server.presets import BUILT_IN, NOTHING, Presets, presets_of
from lattice_server.store import schema, statements
from lattice_server.store.connection import AT_ONCE, Connection
from lattice_server.store.records import (
    EGRESS,
    NETWORK,
    SERVICE,
    PeerRecord,
    ServiceRecord,
)

IDS_AT_ONCE = 500  # in one statement; SQLite once took 999 at most


async def services_of(connection: Connection, workspace: str) -> list[ServiceRecord]:
    """The services of a workspace, by name."""
    memory = connection.memory
    known: tuple[ServiceRecord, ...] | None = memory.get("services", workspace) if memory else None
    if known is None:
        rows = await connection.execute(
            select(schema.services)
            .where(schema.services.c.workspace_id == workspace)
            .order_by(schema.services.c.name)
        )
        known = tuple(ServiceRecord.of(row) for row in rows)
        if memory:
            memory.keep("services", workspace, known)
    return list(known)


async def live_agents(
    connection: Connection, workspace: str, presets: Collection[str] | None, now: int
) -> list[PeerRecord]:
    """The living agents of a workspace that have one of these presets; ``None`` is any."""
    if presets is not None and not presets:
        return []
    peers = schema.peers.c
    query = select(schema.peers).where(
        peers.workspace_id == workspace,
        peers.state == "active",
        peers.kind == "agent",
        peers.expires_at > now,
    )
    if presets is not None:
        query = query.where(peers.preset.in_(presets))
    rows = await connection.execute(query)
    return [PeerRecord.of(row) for row in rows]


async def presets_of_workspace(connection: Connection, workspace: str) -> Presets:
    """All presets that a workspace has."""
    memory = connection.memory
    known: Presets | None = memory.get("presets", workspace) if memory else None
    if known is None:
        workspaces = schema.workspaces.c
        query = select(workspaces.policy).where(workspaces.id == workspace)
        known = presets_of(await connection.scalar(query))
        if memory:
            memory.keep("presets", workspace, known)
    return known


async def peer_by_id(connection: Connection, peer_id: str) -> PeerRecord | None:
    """A peer, also one that has ended."""
    rows = await connection.fetch(statements.PEER_BY_ID, id=peer_id)
    return PeerRecord(*rows[0]) if rows else None


async def ancestors(connection: Connection, peers: Iterable[PeerRecord]) -> list[PeerRecord]:
    """The living agents that these descend from, less those among them."""
    known = {peer.id: peer for peer in peers}
    found: dict[str, PeerRecord] = {}
    wanted = {peer.parent_id for peer in known.values() if peer.parent_id} - known.keys()
    table = schema.peers.c
    while wanted:
        rows = await connection.execute(
            select(schema.peers).where(table.id.in_(wanted), table.state == "active")
        )
        level = {row.id: PeerRecord.of(row) for row in rows}
        found |= level
        above = {peer.parent_id for peer in level.values() if peer.parent_id}
        wanted = above - known.keys() - found.keys()
    return list(found.values())


async def descendants(connection: Connection, peer_ids: Collection[str]) -> list[PeerRecord]:
    """The living agents that come from these by delegation, in all generations, parents first."""
    found: dict[str, PeerRecord] = {}
    level = list(peer_ids)
    table = schema.peers.c
    if len(level) == 1:
        level, [above] = [], level
        for peer in [
            PeerRecord(*r) for r in await connection.fetch(statements.LIVE_CHILDREN, parent=above)
        ]:
            found[peer.id] = peer
            level.append(peer.id)
    while level:
        following: list[str] = []
        for start in range(0, len(level), IDS_AT_ONCE):
            rows = await connection.execute(
                select(schema.peers).where(
                    table.parent_id.in_(level[start : start + IDS_AT_ONCE]),
                    table.state == "active",
                )
            )
            for peer in map(PeerRecord.of, rows):
                if peer.id not in found:
                    found[peer.id] = peer
                    following.append(peer.id)
        level = following
    return list(found.values())


async def service_by_name(
    connection: Connection, workspace: str, name: str
) -> ServiceRecord | None:
    """A service of a workspace."""
    services = schema.services.c
    row = (
        await connection.execute(
            select(schema.services).where(services.workspace_id == workspace, services.name == name)
        )
    ).one_or_none()
    return ServiceRecord.of(row) if row else None


async def connector_of(connection: Connection, workspace: str, now: int) -> PeerRecord | None:
    """The living egress connector of a workspace."""
    services, peers = schema.services.c, schema.peers.c
    row = (
        await connection.execute(
            select(schema.peers)
            .join(schema.services, services.peer_id == peers.id)
            .where(
                services.workspace_id == workspace,
                services.kind == EGRESS,
                peers.state == "active",
                peers.expires_at > now,
            )
        )
    ).one_or_none()
    return PeerRecord.of(row) if row else None


async def name_addresses(connection: Connection, workspace: str) -> tuple[str, ...]:
    """The overlay addresses of the host names that a workspace's egress connector serves."""
    names = schema.names.c
    found = await connection.scalars(
        select(names.address).where(names.workspace_id == workspace).order_by(names.address)
    )
    return tuple(found)


async def peer_objects(
    connection: Connection,
    workspace: str,
    peers: Iterable[PeerRecord],
    now: int,
    services: list[ServiceRecord] | None = None,
    presets: Presets | None = None,
) -> list[PeerObject]:
    """What the gateway has to know of these peers of one workspace, as the store has them now."""
    peers = list(peers)
    agents = [peer for peer in peers if peer.kind == "agent"]
    routes = await routes_of(connection, workspace, peers)
    lines = await lines_of(connection, workspace, agents, now, services, presets)
    return [
        peer_object(
            peer,
            lines.bounded(peer.id),
            routes.get(peer.id, ()),
            lines.first_of(peer.id) if peer.parent_id is not None else None,
        )
        for peer in peers
    ]


async def lines_of(
    connection: Connection,
    workspace: str,
    agents: list[PeerRecord],
    now: int,
    services: list[ServiceRecord] | None = None,
    presets: Presets | None = None,
) -> attenuation.Lines:
    """These agents of one workspace and whom they descend from, as the store has them now."""
    if not agents:
        return attenuation.Lines({})
    if services is None:
        services = await services_of(connection, workspace)
    if presets is None:
        presets = await presets_of_workspace(connection, workspace)
    rules = [service.rule() for service in services]
    reachable: list[policy.AgentRule] = []
    if any(peer.preset != "sandboxed" for peer in agents):
        accepting = policy.accepting_presets(presets)
        reachable = [
            peer.rule() for peer in await live_agents(connection, workspace, accepting, now)
        ]
    line = [*agents, *await ancestors(connection, agents)]
    compiled = {p.id: policy.compile_grants(p.rule(), rules, reachable, presets) for p in line}
    return attenuation.Lines(kin_of(line, compiled, presets))


async def routes_of(
    connection: Connection, workspace: str, peers: Iterable[PeerRecord]
) -> dict[str, tuple[str, ...]]:
    """What connectors among these peers serve beside their own addresses, by id."""
    found: dict[str, tuple[str, ...]] = {}
    for peer in peers:
        if peer.kind == SERVICE and peer.agent_type == EGRESS:
            found[peer.id] = await name_addresses(connection, workspace)
        if peer.kind == SERVICE and peer.agent_type == NETWORK:
            service = await service_by_name(connection, workspace, peer.name)
            found[peer.id] = tuple(service.networks) if service else ()
    return found


def kin_of(
    agents: Iterable[PeerRecord], grants: Mapping[str, tuple[policy.Grant, ...]], presets: Presets
) -> dict[str, attenuation.Kin]:
    """Agents, the grants of their own presets and their lists, for :class:`attenuation.Lines`."""
    return {
        agent.id: attenuation.Kin(
            agent.address,
            agent.parent_id,
            grants[agent.id],
            tuple(agent.allow) if presets.get(agent.preset, NOTHING).own_list else (),
        )
        for agent in agents
    }


def peer_object(
    peer: PeerRecord,
    grants: tuple[policy.Grant, ...],
    routes: tuple[str, ...] = (),
    line: str | None = None,
) -> PeerObject:
    """A record, its grants, what it serves beside its own address and whose line it is of."""
    return PeerObject(peer.id, peer.public_key, peer.address, peer.expires_at, grants, routes, line)


async def ripple(
    connection: Connection,
    workspace: str,
    changes: Sequence[policy.AgentRule | policy.ServiceRule],
    now: int,
) -> list[PeerObject]:
    """The other agents of the workspace whose grants change with these, as they are to be now."""
    presets = await presets_of_workspace(connection, workspace)
    names = frozenset[str]().union(*(policy.affected_presets(c, presets) for c in changes))
    if not names:
        return []
    candidates = await live_agents(connection, workspace, names, now)
    rules = [candidate.rule() for candidate in candidates]
    touched = {rule.id for change in changes for rule in policy.affected(change, rules, presets)}
    if not touched:
        return []
    return await peer_objects(
        connection, workspace, [c for c in candidates if c.id in touched], now, presets=presets
    )


async def whole_state(connection: Connection, now: int) -> list[PeerObject]:
    """Every living peer of every workspace, for a gateway that connects."""
    services: dict[str, list[ServiceRecord]] = {}
    for row in await connection.execute(select(schema.services)):
        services.setdefault(row.workspace_id, []).append(ServiceRecord.of(row))
    routes: dict[str, tuple[str, ...]] = {}
    for row in await connection.execute(select(schema.names)):
        routes[row.workspace_id] = (*routes.get(row.workspace_id, ()), row.address)
    workspaces = schema.workspaces.c
    policies = {
        row.id: presets_of(row.policy)
        for row in await connection.execute(
            select(workspaces.id, workspaces.policy).where(workspaces.policy.is_not(None))
        )
    }
    living: dict[str, list[PeerRecord]] = {}
    async for rows in connection.stream(statements.LIVE_PEERS, now=now):
        for values in rows:
            peer = PeerRecord(*values)
            living.setdefault(peer.workspace_id, []).append(peer)
    state: list[PeerObject] = []
    for workspace, members in living.items():
        presets = policies.get(workspace, BUILT_IN)
        served = {s.peer_id: tuple(s.networks) for s in services.get(workspace, ())}
        served |= {
            s.peer_id: routes.get(workspace, ())
            for s in services.get(workspace, ())
            if s.kind == EGRESS
        }
        agents = [peer for peer in members if peer.kind == "agent"]
        compiled = policy.compile_workspace(
            policy.Workspace(
                {s.name: s.rule() for s in services.get(workspace, ())},
                {peer.id: peer.rule() for peer in agents},
                presets,
            )
        )
        lines = None
        if any(agent.parent_id is not None for agent in agents):
            lines = attenuation.Lines(kin_of(agents, compiled, presets))
        for number, peer in enumerate(members):
            grants, line = compiled.get(peer.id, ()), None
            if lines is not None and peer.parent_id is not None:
                grants, line = lines.bounded(peer.id), lines.first_of(peer.id)
            state.append(peer_object(peer, grants, served.get(peer.id, ()), line))
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
    return state
