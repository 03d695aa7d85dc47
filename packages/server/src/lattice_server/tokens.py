"""Tokens: who may enroll and with what limits; made, exchanged for a new text, revoked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update

from lattice_sdk.durations import format_duration
from lattice_server import endings, workspace_policy
from lattice_server.access import check_token, used_up
from lattice_server.api.models import TokenBody
from lattice_server.clock import now_ms, rfc3339, to_ms
from lattice_server.credentials import new_id, new_token, token_hash
from lattice_server.problems import ApiProblem
from lattice_server.store import schema, statements
from lattice_server.store.database import Transaction
from lattice_server.store.events import event
from lattice_server.store.queries import service_by_name
from lattice_server.store.records import PeerRecord, TokenRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane


async def create(control: ControlPlane, body: TokenBody) -> dict[str, Any]:
    """Make a token; the only answer that holds its text.

    Raises:
        ApiProblem: ``unknown_workspace`` or ``service_not_found``.
    """
    text, now = new_token(body.kind), now_ms()
    token = TokenRecord(
        n=0,
        id=new_id("token"),
        kind=body.kind,
        workspace_id=body.workspace_id,
        service=body.service,
        presets=body.presets,
        allow_isolated=body.allow_isolated,
        allow=None if body.allow is None else [rule.record() for rule in body.allow],
        max_ttl=in_ms(body.max_ttl),
        max_lifetime=in_ms(body.max_lifetime),
        uses=body.uses,
        used=0,
        created_at=now,
        expires_at=None if body.expires_in is None else now + to_ms(body.expires_in),
        revoked_at=None,
        agent_types=body.agent_types,
        sources=body.sources,
        delegation_depth=body.delegation_depth,
    )
    async with control.database.write() as tx:
        if body.workspace_id is not None:
            await check_workspace(tx, body.workspace_id)
            await workspace_policy.check_presets(tx, body.workspace_id, body.presets)
        if (
            body.service is not None
            and await service_by_name(tx.connection, body.workspace_id or "", body.service) is None
        ):
            raise no_service(body.service)
        await tx.connection.execute(
            insert(schema.tokens).values(hash=token_hash(text), **token.values())
        )
        await control.events.append(tx, [_event("token.created", now, token)])
    control.failures.passed(token_hash(text))
    return {**answer(token), "token": text}


async def list_page(
    control: ControlPlane,
    workspace: str | None,
    limit: int,
    after: int,
    *,
    trusts: bool = False,
) -> tuple[list[TokenRecord], int | None]:
    """A page of tokens, or else of trusts, oldest first, and where the next page starts."""
    tokens = schema.tokens.c
    query = (
        select(schema.tokens)
        .where(tokens.n > after, tokens.kind == "trust" if trusts else tokens.kind != "trust")
        .order_by(tokens.n)
        .limit(limit + 1)
    )
    if workspace is not None:
        query = query.where(tokens.workspace_id == workspace)
    async with control.database.read() as connection:
        found = [TokenRecord.of(row) for row in await connection.execute(query)]
    following = found[limit - 1].n if len(found) > limit else None
    return found[:limit], following


async def rotate(control: ControlPlane, token_id: str, overlap: timedelta) -> dict[str, Any]:
    """Give a token a new text; the only answer that holds it.

    Its id, its limits and the identities that it enrolled stay.

    Args:
        control: the control plane.
        token_id: whose.
        overlap: how long the former text holds as well.

    Raises:
        ApiProblem: ``token_not_found``, or ``conflict`` for one that was revoked or has expired.
    """
    now = now_ms()
    async with control.database.write() as tx:
        token = await _by_id(tx, token_id)
        if token.kind == "trust":
            raise ApiProblem("token_not_found", f"{token_id} is a trust, which has no text")
        if token.revoked_at is not None or (token.expires_at or now + 1) <= now:
            raise ApiProblem(
                "conflict", f"the token {token_id} holds no more; make a new one instead"
            )
        text = new_token(token.kind)
        until = now + to_ms(overlap)
        tokens = schema.tokens.c
        await tx.connection.execute(
            update(schema.tokens)
            .where(tokens.id == token_id)
            .values(previous_hash=tokens.hash, previous_until=until, hash=token_hash(text))
        )
        token = replace(token, previous_until=until)
        await control.events.append(
            tx, [_event("token.rotated", now, token, formerHoldsUntil=rfc3339(until))]
        )
    control.failures.passed(token_hash(text))
    return {**answer(token), "token": text}


async def revoke_by_id(control: ControlPlane, token_id: str, *, agents: bool) -> int:
    """Revoke a token; also one that is revoked already.

    Args:
        control: the control plane.
        token_id: which.
        agents: end the identities that live by it, too, and their sub-agents.

    Returns:
        How many identities that it enrolled were ended, sub-agents not counted.

    Raises:
        ApiProblem: ``token_not_found``, or ``conflict`` for the last admin token.
    """
    now = now_ms()
    ended: list[PeerRecord] = []
    async with control.database.write() as tx:
        token = await _by_id(tx, token_id)
        if token.revoked_at is None:
            await _check_not_last(tx, token)
            await revoke(control, tx, [token], now)
        if agents:
            ended = await _enrolled_by(tx, token_id)
            await endings.end_peers(control, tx, ended, "revoked", by="admin", reason="token")
    if ended and control.hub.stream is not None:
        await control.hub.wait(control.hub.revision, control.settings.delete_wait.total_seconds())
    return len(ended)


async def revoke(
    control: ControlPlane, tx: Transaction, tokens: Sequence[TokenRecord], now: int
) -> None:
    """Revoke tokens within a transaction."""
    await tx.connection.execute(
        update(schema.tokens)
        .where(schema.tokens.c.id.in_([token.id for token in tokens]))
        .values(revoked_at=now)
    )
    await control.events.append(
        tx,
        [
            _event("trust.revoked" if token.kind == "trust" else "token.revoked", now, token)
            for token in tokens
        ],
    )


async def use(tx: Transaction, token: TokenRecord) -> None:
    """Count one use, if the token still holds: the condition and the count are one statement.

    Raises:
        ApiProblem: ``token_used_up``, ``token_revoked`` or ``token_expired``.
    """
    counted = await tx.connection.run(statements.COUNT_USE, {"token": token.id, "now": now_ms()})
    if counted == 0:
        await check_holds(tx, token.id)
        raise used_up(token)


async def check_holds(tx: Transaction, token_id: str) -> None:
    """Refuse a token that was revoked or has expired since it was looked at.

    Raises:
        ApiProblem: ``token_revoked`` or ``token_expired``.
    """
    row = (
        await tx.connection.execute(select(schema.tokens).where(schema.tokens.c.id == token_id))
    ).one()
    check_token(TokenRecord.of(row), now_ms(), spent=True)


def answer(token: TokenRecord) -> dict[str, Any]:
    """A token as the API shows it, without its text."""
    return {
        "id": token.id,
        "kind": token.kind,
        "workspaceId": token.workspace_id,
        "service": token.service,
        "presets": token.presets,
        "maxTTL": duration(token.max_ttl),
        "maxLifetime": duration(token.max_lifetime),
        "uses": token.uses,
        "used": token.used,
        "allowIsolated": token.allow_isolated,
        "allow": token.allow,
        "agentTypes": token.agent_types,
        "sources": token.sources,
        "delegationDepth": token.delegation_depth,
        "parentRef": token.parent_id,
        "createdAt": rfc3339(token.created_at),
        "expiresAt": _time(token.expires_at),
        "revokedAt": _time(token.revoked_at),
        "formerHoldsUntil": _time(token.previous_until),
    }


async def check_workspace(tx: Transaction, workspace: str) -> None:
    """See that a workspace is there.

    Raises:
        ApiProblem: ``unknown_workspace``.
    """
    workspaces = schema.workspaces.c
    if not await tx.connection.scalar(select(workspaces.id).where(workspaces.id == workspace)):
        raise ApiProblem(
            "unknown_workspace",
            f"there is no workspace {workspace}; create it first (POST /api/v1/workspaces)",
            errors=[{"field": "workspaceId", "message": "unknown"}],
        )


def no_service(name: str) -> ApiProblem:
    """The 404 of a service that is not there."""
    return ApiProblem(
        "service_not_found", f"there is no service {name}; add it first (POST /api/v1/services)"
    )


async def _by_id(tx: Transaction, token_id: str) -> TokenRecord:
    row = (
        await tx.connection.execute(select(schema.tokens).where(schema.tokens.c.id == token_id))
    ).one_or_none()
    if row is None:
        raise ApiProblem("token_not_found", f"there is no token {token_id}")
    return TokenRecord.of(row)


async def _check_not_last(tx: Transaction, token: TokenRecord) -> None:
    if token.kind != "admin":
        return
    tokens = schema.tokens.c
    others = await tx.connection.scalar(
        select(tokens.id)
        .where(
            tokens.kind == "admin",
            tokens.revoked_at.is_(None),
            tokens.expires_at.is_(None),
            tokens.id != token.id,
        )
        .limit(1)
    )
    if others is None:
        raise ApiProblem(
            "conflict",
            "this is the last admin token without an end, and without one nobody could "
            "manage this server; make another one first",
        )


async def _enrolled_by(tx: Transaction, token_id: str) -> list[PeerRecord]:
    peers = schema.peers.c
    rows = await tx.connection.execute(
        select(schema.peers).where(peers.issuer == token_id, peers.state == "active")
    )
    return [PeerRecord.of(row) for row in rows]


def _event(kind: str, now: int, token: TokenRecord, **data: Any) -> dict[str, Any]:
    return event(kind, now, workspace=token.workspace_id, token=token.id, kind=token.kind, **data)


def in_ms(span: timedelta | None) -> int | None:
    """A duration in ms, if there is one."""
    return None if span is None else to_ms(span)


def duration(milliseconds: int | None) -> str | None:
    """A duration as the wire writes it, if there is one."""
    return None if milliseconds is None else format_duration(timedelta(milliseconds=milliseconds))


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else rfc3339(milliseconds)
