"""Workspaces, tokens and tool services: what administrators change."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, tuple_, update

from lattice_sdk.durations import format_duration
from lattice_server import endings, services, workspace_policy
from lattice_server.answers import service_answer
from lattice_server.api.models import ServiceBody, TokenBody, port_records
from lattice_server.clock import now_ms, rfc3339, to_ms
from lattice_server.credentials import new_id, new_token, token_hash
from lattice_server.hub import PeerObject
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.database import Transaction
from lattice_server.store.events import event
from lattice_server.store.queries import peer_by_id, ripple, service_by_name, services_of
from lattice_server.store.records import EGRESS, ServiceRecord, TokenRecord

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
    return _page(items, len(rows) > limit, lambda: str(rows[limit - 1].id))


async def create_token(control: ControlPlane, body: TokenBody) -> dict[str, Any]:
    """Make a token; the only answer that holds its text.

    Raises:
        ApiProblem: ``unknown_workspace`` or ``service_not_found``.
    """
    text = new_token(body.kind)
    now = now_ms()
    values = {
        "id": new_id("token"),
        "kind": body.kind,
        "hash": token_hash(text),
        "workspace_id": body.workspace_id,
        "service": body.service,
        "presets": body.presets,
        "allow_isolated": body.allow_isolated,
        "allow": None if body.allow is None else [rule.record() for rule in body.allow],
        "max_ttl": _ms(body.max_ttl),
        "max_lifetime": _ms(body.max_lifetime),
        "uses": body.uses,
        "used": 0,
        "created_at": now,
        "expires_at": None if body.expires_in is None else now + to_ms(body.expires_in),
    }
    async with control.database.write() as tx:
        if body.workspace_id is not None:
            await _check_workspace(tx, body.workspace_id)
            await workspace_policy.check_presets(tx, body.workspace_id, body.presets)
        if (
            body.service is not None
            and await service_by_name(tx.connection, body.workspace_id or "", body.service) is None
        ):
            raise _no_service(body.service)
        await tx.connection.execute(insert(schema.tokens).values(**values))
        row = (
            await tx.connection.execute(
                select(schema.tokens).where(schema.tokens.c.id == values["id"])
            )
        ).one()
        token = TokenRecord.of(row)
        await control.events.append(tx, [_token_event("token.created", now, token)])
    return {**_token_answer(token), "token": text}


async def list_tokens(
    control: ControlPlane, workspace: str | None, limit: int, after: int
) -> dict[str, Any]:
    """A page of tokens, oldest first."""
    tokens = schema.tokens.c
    query = select(schema.tokens).where(tokens.n > after).order_by(tokens.n).limit(limit + 1)
    if workspace is not None:
        query = query.where(tokens.workspace_id == workspace)
    async with control.database.read() as connection:
        found = [TokenRecord.of(row) for row in await connection.execute(query)]
    items = [_token_answer(token) for token in found[:limit]]
    return _page(items, len(found) > limit, lambda: str(found[limit - 1].n))


async def revoke_token(control: ControlPlane, token_id: str) -> None:
    """Revoke a token; also one that is revoked already.

    Raises:
        ApiProblem: ``token_not_found``, or ``conflict`` for the last admin token.
    """
    tokens = schema.tokens.c
    now = now_ms()
    async with control.database.write() as tx:
        row = (
            await tx.connection.execute(select(schema.tokens).where(tokens.id == token_id))
        ).one_or_none()
        if row is None:
            raise ApiProblem("token_not_found", f"there is no token {token_id}")
        token = TokenRecord.of(row)
        if token.revoked_at is not None:
            return
        if token.kind == "admin":
            others = await tx.connection.scalar(
                select(tokens.id)
                .where(
                    tokens.kind == "admin",
                    tokens.revoked_at.is_(None),
                    tokens.expires_at.is_(None),
                    tokens.id != token_id,
                )
                .limit(1)
            )
            if others is None:
                raise ApiProblem(
                    "conflict",
                    "this is the last admin token without an end, and without one nobody could "
                    "manage this server; make another one first",
                )
        await _revoke(control, tx, [token], now)


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
            await _check_workspace(tx, body.workspace_id)
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
            address = await control.take_address(tx, wanted.peer_id)
            service = replace(wanted, address=address)
            await tx.connection.execute(insert(schema.services).values(**service.values()))
            await control.events.append(tx, [_service_event("service.created", service)])
            await _publish_ripple(control, tx, service, [])
    except BaseException:
        if address is not None:
            control.addresses.release(address)
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
    return _page(
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
        raise _no_service(name)
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
            raise _no_service(name)
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
        await _revoke(control, tx, [TokenRecord.of(row) for row in rows], now)
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


async def _check_workspace(tx: Transaction, workspace: str) -> None:
    workspaces = schema.workspaces.c
    if not await tx.connection.scalar(select(workspaces.id).where(workspaces.id == workspace)):
        raise ApiProblem(
            "unknown_workspace",
            f"there is no workspace {workspace}; create it first (POST /api/v1/workspaces)",
            errors=[{"field": "workspaceId", "message": "unknown"}],
        )


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


async def _revoke(
    control: ControlPlane, tx: Transaction, tokens: list[TokenRecord], now: int
) -> None:
    await tx.connection.execute(
        update(schema.tokens)
        .where(schema.tokens.c.id.in_([token.id for token in tokens]))
        .values(revoked_at=now)
    )
    await control.events.append(tx, [_token_event("token.revoked", now, t) for t in tokens])


def _no_service(name: str) -> ApiProblem:
    return ApiProblem(
        "service_not_found", f"there is no service {name}; add it first (POST /api/v1/services)"
    )


def _token_event(kind: str, now: int, token: TokenRecord) -> dict[str, Any]:
    return event(kind, now, workspace=token.workspace_id, token=token.id, kind=token.kind)


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


def _token_answer(token: TokenRecord) -> dict[str, Any]:
    return {
        "id": token.id,
        "kind": token.kind,
        "workspaceId": token.workspace_id,
        "service": token.service,
        "presets": token.presets,
        "maxTTL": _text(token.max_ttl),
        "maxLifetime": _text(token.max_lifetime),
        "uses": token.uses,
        "used": token.used,
        "allowIsolated": token.allow_isolated,
        "allow": token.allow,
        "createdAt": rfc3339(token.created_at),
        "expiresAt": None if token.expires_at is None else rfc3339(token.expires_at),
        "revokedAt": None if token.revoked_at is None else rfc3339(token.revoked_at),
    }


def _page(items: list[dict[str, Any]], more: bool, cursor: Any) -> dict[str, Any]:
    return {"items": items, "next": cursor()} if more else {"items": items}


def _ms(span: timedelta | None) -> int | None:
    return None if span is None else to_ms(span)


def _text(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else format_duration(timedelta(milliseconds=milliseconds))
