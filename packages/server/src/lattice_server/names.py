"""Host names that identities may reach through their workspace's egress connector.

Each name has an overlay address of its own for as long as somebody's ``allow`` list has it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, tuple_, update

from lattice_server import destinations, terms
from lattice_server.answers import beyond
from lattice_server.clock import now_ms, to_ms
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.connection import Connection
from lattice_server.store.database import Transaction
from lattice_server.store.queries import connector_of
from lattice_server.store.records import PeerRecord, ServiceRecord, TokenRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

# An allow list that is full of names must not take the pool's addresses from everybody else.
MOST_NAMES = 100


async def claim(
    control: ControlPlane,
    tx: Transaction,
    token: TokenRecord,
    peer: PeerRecord,
    services: Collection[ServiceRecord],
    taken: list[str],
) -> PeerRecord:
    """Give the host names of an allow list their addresses; the peer with them.

    Names of the workspace's tool services are left to the policy compiler.

    Args:
        control: the control plane.
        tx: the transaction of the enrollment.
        token: what it is enrolled with.
        peer: the new identity.
        services: of its workspace.
        taken: gets the addresses that are to be given back if the transaction fails.

    Raises:
        ApiProblem: ``destination_not_permitted``, ``egress_unavailable``, ``invalid_request`` or
            ``address_pool_exhausted``.
    """
    _check_networks(control, peer, services)
    known = {name for service in services for name in service.hostnames}
    wanted = {
        rule["to"]
        for rule in peer.allow
        if destinations.parse(rule["to"]).kind == "name" and rule["to"] not in known
    }
    patterned = [r["to"] for r in peer.allow if destinations.parse(r["to"]).kind == "pattern"]
    if not wanted and not patterned:
        return peer
    _check(wanted)
    if (
        wanted and token.allow is None and token.kind != "delegation"
    ):  # that was compared with its parent
        raise terms.not_permitted(f"the host {min(wanted)}")
    connector = await connector_of(tx.connection, peer.workspace_id, now_ms())
    if connector is None or not control.connectors.connected(connector.id):
        raise unavailable(
            f"no egress connector of the workspace {peer.workspace_id} is connected, so "
            f"{min([*wanted, *patterned])} cannot be reached; start `lattice egress` and try again"
        )
    addresses = await addresses_of(control, tx, peer.workspace_id, wanted, connector.id, taken)
    allow = [
        {**rule, "address": addresses[rule["to"]]} if rule["to"] in addresses else rule
        for rule in peer.allow
    ]
    if wanted:
        await tx.connection.execute(insert(schema.name_uses), uses(peer, allow))
    return replace(peer, allow=allow)


def uses(peer: PeerRecord, rules: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that say which names an identity asks for."""
    asked = {(rule["to"], rule["protocol"], rule["port"]) for rule in rules if "address" in rule}
    return [
        {
            "peer_id": peer.id,
            "workspace_id": peer.workspace_id,
            "name": name,
            "protocol": protocol,
            "port": port,
        }
        for name, protocol, port in sorted(asked)
    ]


def unavailable(detail: str) -> ApiProblem:
    """The 503 of an egress connector that is absent or does not take a change up in time."""
    return ApiProblem("egress_unavailable", detail, headers={"Retry-After": "1"})


def _check_networks(
    control: ControlPlane, peer: PeerRecord, services: Iterable[ServiceRecord]
) -> None:
    advertised = [IPv4Network(n) for service in services for n in service.networks]
    for network in beyond(control.settings, peer):
        if not any(IPv4Network(network).subnet_of(known) for known in advertised):
            raise ApiProblem(
                "invalid_request",
                f"no connector of the workspace advertises {network}; correct allow, or start "
                f"`lattice connect NAME --advertise {network}` first",
                errors=[{"field": "allow", "message": f"nobody advertises {network}"}],
            )


def _check(wanted: Collection[str]) -> None:
    for name in sorted(wanted):
        if name.endswith(".lattice") or "." not in name:
            raise ApiProblem(
                "invalid_request",
                f"the workspace has no tool service with the host name {name}; correct the name "
                "in allow, or add the service first",
                errors=[{"field": "allow", "message": f"no service is called {name}"}],
            )
    if len(wanted) > MOST_NAMES:
        raise ApiProblem(
            "invalid_request",
            f"an identity may name {MOST_NAMES} hosts in allow, and this names "
            f"{len(wanted)}; use fewer",
            errors=[{"field": "allow", "message": f"at most {MOST_NAMES} host names"}],
        )


async def addresses_of(
    control: ControlPlane,
    tx: Transaction,
    workspace: str,
    wanted: Collection[str],
    owner: str,
    taken: list[str],
) -> dict[str, str]:
    """The addresses of these names; a name that has none gets one."""
    names = schema.names.c
    rows = await tx.connection.execute(
        select(names.name, names.address).where(
            names.workspace_id == workspace, names.name.in_(wanted)
        )
    )
    addresses = {row.name: row.address for row in rows}
    for name in sorted(set(wanted) - addresses.keys()):
        addresses[name] = await control.take_address(tx, owner, workspace)
        taken.append(addresses[name])
        await tx.connection.execute(
            insert(schema.names).values(workspace_id=workspace, name=name, address=addresses[name])
        )
    return addresses


async def release(control: ControlPlane, tx: Transaction, peers: Sequence[PeerRecord]) -> set[str]:
    """Drop what ended identities asked for, and the names that nobody asks for any more.

    Returns:
        The workspaces whose connector has to hear of it.
    """
    named = [peer.id for peer in peers if any("address" in rule for rule in peer.allow)]
    if not named:
        return set()
    table, names = schema.name_uses.c, schema.names.c
    rows = await tx.connection.execute(
        delete(schema.name_uses)
        .where(table.peer_id.in_(named))
        .returning(table.workspace_id, table.name)
    )
    touched = {(row.workspace_id, row.name) for row in rows}
    still = await tx.connection.execute(
        select(table.workspace_id, table.name)
        .where(tuple_(table.workspace_id, table.name).in_(touched))
        .distinct()
    )
    over = touched - {(row.workspace_id, row.name) for row in still}
    if over:
        freed = await tx.connection.scalars(
            delete(schema.names)
            .where(tuple_(names.workspace_id, names.name).in_(over))
            .returning(names.address)
        )
        await tx.connection.execute(
            update(schema.addresses)
            .where(schema.addresses.c.address.in_(list(freed)))
            .values(free_at=now_ms() + to_ms(control.settings.quarantine))
        )
    return {workspace for workspace, _ in touched}


async def routes(connection: Connection, workspace: str) -> list[dict[str, Any]]:
    """What the egress connector of a workspace has to serve, as its engine takes it."""
    names, table = schema.names.c, schema.name_uses.c
    rows = await connection.execute(
        select(names.name, names.address, table.protocol, table.port)
        .join_from(
            schema.names,
            schema.name_uses,
            (names.workspace_id == table.workspace_id) & (names.name == table.name),
        )
        .where(names.workspace_id == workspace)
        .distinct()
        .order_by(names.name, table.protocol, table.port)
    )
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = found.setdefault(row.name, {"address": row.address, "name": row.name, "ports": []})
        entry["ports"].append({"port": row.port, "protocol": row.protocol})
    return list(found.values())
