"""Trusts: whose JWTs may enroll into a workspace, and with what limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import insert

from lattice_server import tokens, workspace_policy
from lattice_server.api.models import TrustBody
from lattice_server.clock import now_ms, to_ms
from lattice_server.credentials import new_id
from lattice_server.store import schema
from lattice_server.store.events import event
from lattice_server.store.records import TokenRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane


async def create(control: ControlPlane, body: TrustBody) -> dict[str, Any]:
    """Trust an issuer's JWTs, as far as the body says.

    Raises:
        ApiProblem: ``unknown_workspace``.
    """
    now = now_ms()
    token = TokenRecord(
        n=0,
        id=new_id("trust"),
        kind="trust",
        workspace_id=body.workspace_id,
        service=None,
        presets=body.presets,
        allow_isolated=body.allow_isolated,
        allow=None if body.allow is None else [rule.record() for rule in body.allow],
        max_ttl=tokens.in_ms(body.max_ttl),
        max_lifetime=tokens.in_ms(body.max_lifetime),
        uses=body.uses,
        used=0,
        created_at=now,
        expires_at=None if body.expires_in is None else now + to_ms(body.expires_in),
        revoked_at=None,
        agent_types=body.agent_types,
        sources=body.sources,
        delegation_depth=body.delegation_depth,
        trust={
            "issuer": body.issuer,
            "audience": body.audience,
            "jwksUri": body.jwks_uri,
            "claims": body.claims,
            "maxAge": tokens.in_ms(body.max_age),
        },
    )
    async with control.database.write() as tx:
        await tokens.check_workspace(tx, body.workspace_id)
        await workspace_policy.check_presets(tx, body.workspace_id, body.presets)
        # No text has this hash, as it is none.
        await tx.connection.execute(
            insert(schema.tokens).values(hash=f"none {token.id}", **token.values())
        )
        created = event(
            "trust.created",
            now,
            workspace=token.workspace_id,
            token=token.id,
            issuer=body.issuer,
            audience=body.audience,
            claims=body.claims,
        )
        await control.events.append(tx, [created])
    return answer(token)


def answer(token: TokenRecord) -> dict[str, Any]:
    """A trust as the API shows it."""
    told = tokens.answer(token)
    trust = token.trust or {}
    for field in ("kind", "service", "parentRef", "formerHoldsUntil"):
        del told[field]
    return {
        **told,
        "issuer": trust["issuer"],
        "audience": trust["audience"],
        "jwksUri": trust["jwksUri"],
        "claims": trust["claims"],
        "maxAge": tokens.duration(trust.get("maxAge")),
    }
