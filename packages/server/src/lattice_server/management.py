"""Workspaces and tool services: what administrators change. Tokens are in :mod:`tokens`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, tuple_, update

from lattice_server import endings, services
from lattice_server.answers import service_answer
from lattice_server.api.models import ServiceBody, port_records
from lattice_server.clock import now_ms, rfc3339, to_ms
from lattice_server.credentials import new_id
from lattice_server.hub import PeerObject
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.database import Transaction
from lattice_server.store.events import event
from lattice_server.store.queries import peer_by_id, ripple, service_by_name, services_of
from lattice_server.store.records import EGRESS, ServiceRecord, TokenRecord
from lattice_server.tokens import check_workspace, no_service, revoke

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane


async def create_workspace(control: ControlPlane, workspace: str) -> dict[str, Any]:
    """Make a workspace, or answer the one that is there."""
    workspaces = schema.workspaces
    async with control.database.write() as tx:
        created = await tx.connection.scalar(
            select(workspaces.c.created_at).where(workspaces.c.id == workspace)
        )
        if created is None:
            created = now_ms()
            await tx.connection.execute(insert(workspaces).values(id=workspace, created_at=created))
    return {"workspaceId": workspace, "createdAt": rfc3339(created)}


async def list_workspaces(control: ControlPlane, limit: int, after: str) -> dict[str, Any]:
    """A page of workspaces, by name."""
    workspaces = schema.workspaces
    async with control.database.read() as connection:
        rows = (
            await connection.execute(
                select(workspaces)
                .where(workspaces.c.id > after)
                .order_by(workspaces.c.id)
                .limit(limit + 1)
            )
        ).all()
    items = [{"workspaceId": r.id, "createdAt": rfc3339(r.created_at)} for r in rows[:limit]]
    return page_of(items, len(rows) > limit, lambda: str(rows[limit - 1].id))


async def create_service(control: ControlPlane, body: ServiceBody) -> dict[str, Any]:
    """Add a tool service; one that is there with the same definition is answered as it is.

    Raises:
        ApiProblem: ``unknown_workspace``, ``conflict`` or ``address_pool_exhausted``.
    """
    wanted = ServiceRecord(
        workspace_id=body.workspace_id,
        name=body.name,
        peer_id=new_id("peer"),
        address="",
        hostnames=sorted(set(body.hostnames)) or _default_hostnames(body),
        ports=port_records(body.ports),
        designated=body.designated,
        created_at=now_ms(),
        kind=body.kind,
        networks=sorted(set(body.networks)),
    )
    address: str | None = None
    try:
        async with control.database.write() as tx:
            await check_workspace(tx, body.workspace_id)
            known = await service_by_name(tx.connection, body.workspace_id, body.name)
            if known is not None:
                same = replace(
                    wanted,
                    peer_id=known.peer_id,
                    address=known.address,
                    created_at=known.created_at,
                )
                if known != same:
                    raise ApiProblem(
                        "conflict",
                        f"the workspace has another service {body.name}; remove it first, "
                        "or choose another name",
                    )
                peer = await peer_by_id(tx.connection, known.peer_id)
                return service_answer(known, connected=bool(peer and peer.alive(now_ms())))
            await services.check_hostnames(tx, wanted)
            await _check_single(tx, wanted)
            await services.check_networks(control, tx, wanted)
            address = await control.take_address(tx, wanted.peer_id, body.workspace_id)
            service = replace(wanted, address=address)
            await tx.connection.execute(insert(schema.services).values(**service.values()))
            await control.events.append(tx, [_service_event("service.created", service)])
            await _publish_ripple(control, tx, service, [])
    except BaseException:
        if address is not None:
            control.give_back(body.workspace_id, address)
        raise
    return service_answer(service, connected=False)


async def list_services(
    control: ControlPlane, workspace: str | None, limit: int, cursor: str | None
) -> dict[str, Any]:
    """A page of services, by workspace and name."""
    services, peers = schema.services.c, schema.peers.c
    query = select(schema.services).order_by(services.workspace_id, services.name).limit(limit + 1)
    if workspace is not None:
        query = query.where(services.workspace_id == workspace)
    if cursor is not None:
        place, _, name = cursor.partition("/")
        query = query.where(tuple_(services.workspace_id, services.name) > tuple_(place, name))
    async with control.database.read() as connection:
        found = [ServiceRecord.of(row) for row in await connection.execute(query)]
        connected = set(
            await connection.scalars(
                select(peers.id).where(
                    peers.kind == "service", peers.state == "active", peers.expires_at > now_ms()
                )
            )
        )
    items = [service_answer(s, connected=s.peer_id in connected) for s in found[:limit]]
    return page_of(
        items,
        len(found) > limit,
        lambda: f"{found[limit - 1].workspace_id}/{found[limit - 1].name}",
    )


async def workspace_of_service(control: ControlPlane, name: str) -> str:
    """The one workspace that has a service of this name.

    Raises:
        ApiProblem: ``service_not_found``, or ``invalid_request`` when there are several.
    """
    services = schema.services.c
    async with control.database.read() as connection:
        found = list(
            await connection.scalars(
                select(services.workspace_id).where(services.name == name).limit(2)
            )
        )
    if not found:
        raise no_service(name)
    if len(found) > 1:
        raise ApiProblem(
            "invalid_request",
            f"several workspaces have a service {name}; say which with workspaceId",
            errors=[{"field": "workspaceId", "message": "needed here"}],
        )
    return str(found[0])


async def delete_service(control: ControlPlane, workspace: str, name: str) -> None:
    """Remove a service, its identity, its tokens and all grants to it.

    Raises:
        ApiProblem: ``service_not_found``.
    """
    services, tokens = schema.services.c, schema.tokens.c
    now = now_ms()
    async with control.database.write() as tx:
        service = await service_by_name(tx.connection, workspace, name)
        if service is None:
            raise no_service(name)
        await tx.connection.execute(
            delete(schema.services).where(services.workspace_id == workspace, services.name == name)
        )
        peer = await peer_by_id(tx.connection, service.peer_id)
        if peer is not None and peer.state == "active":
            await endings.end_peers(control, tx, [peer], "revoked", by="admin", reason="service")
        await tx.connection.execute(
            update(schema.addresses)
            .where(schema.addresses.c.address == service.address)
            .values(free_at=now + to_ms(control.settings.quarantine))
        )
        rows = await tx.connection.execute(
            select(schema.tokens).where(
                tokens.workspace_id == workspace,
                tokens.service == name,
                tokens.revoked_at.is_(None),
            )
        )
        await revoke(control, tx, [TokenRecord.of(row) for row in rows], now)
        await control.events.append(tx, [_service_event("service.removed", service)])
        await _publish_ripple(control, tx, service, [service.peer_id])
    if control.hub.stream is not None:
        await control.hub.wait(control.hub.revision, control.settings.delete_wait.total_seconds())


async def _publish_ripple(
    control: ControlPlane, tx: Transaction, service: ServiceRecord, gone: list[str]
) -> None:
    others: list[PeerObject] = await ripple(
        tx.connection, service.workspace_id, [service.rule()], now_ms()
    )
    tx.after_commit.append(lambda: control.hub.publish(others, gone))


async def _check_single(tx: Transaction, wanted: ServiceRecord) -> None:
    if wanted.kind != EGRESS:
        return
    for other in await services_of(tx.connection, wanted.workspace_id):
        if other.kind == EGRESS:
            raise ApiProblem(
                "conflict",
                f"the workspace has the egress connector {other.name} already, and there is one; "
                "use that, or remove it first",
                errors=[{"field": "kind", "message": "there is one already"}],
            )


def _default_hostnames(body: ServiceBody) -> list[str]:
    return [f"{body.name}.lattice"] if body.kind == "service" else []


def _service_event(kind: str, service: ServiceRecord) -> dict[str, Any]:
    return event(
        kind,
        now_ms(),
        workspace=service.workspace_id,
        peer_id=service.peer_id,
        name=service.name,
        address=service.address,
        designated=service.designated,
    )


def page_of(items: list[dict[str, Any]], more: bool, cursor: Callable[[], str]) -> dict[str, Any]:
    """A page; ``cursor`` gives where the next one starts, if there is more."""
    return {"items": items, "next": cursor()} if more else {"items": items}
