"""Who calls: from a bearer token to what its owner may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from lattice_server.clock import now_ms, rfc3339
from lattice_server.credentials import TokenKind, token_hash, token_kind
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.records import PeerRecord, TokenRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a valid token: ``token`` for a managed one, ``peer`` for an enrollment token."""

    kind: TokenKind
    token: TokenRecord | None = None
    peer: PeerRecord | None = None

    def may_see(self, workspace: str) -> bool:
        """Whether things of this workspace exist for the caller."""
        if self.kind == "admin":
            return True
        return (
            self.kind == "workspace"
            and self.token is not None
            and self.token.workspace_id == workspace
        )

    def granted(self) -> TokenRecord:
        """The managed token."""
        if self.token is None:
            raise ApiProblem("forbidden", "an enrollment token does not permit this")
        return self.token


async def authenticate(
    control: ControlPlane, authorization: str | None, *allowed: TokenKind, spent: bool = False
) -> Principal:
    """Check an ``Authorization`` header.

    Args:
        control: the control plane.
        authorization: the header's value.
        allowed: the kinds of token that may do this.
        spent: accept a token without uses left (the caller counts uses by itself).

    Raises:
        ApiProblem: 401 for a missing or bad token, 403 for one of another kind.
    """
    scheme, _, text = (authorization or "").partition(" ")
    text = text.strip()
    if scheme.lower() != "bearer" or not text:
        raise ApiProblem(
            "missing_token", "no bearer token was sent; add the header Authorization: Bearer lt-…"
        )
    kind = token_kind(text)
    if kind is None:
        raise _invalid()
    async with control.database.read() as connection:
        if kind == "enrollment":
            row = (
                await connection.execute(
                    select(schema.peers).where(schema.peers.c.token_hash == token_hash(text))
                )
            ).one_or_none()
            principal = Principal(kind, peer=PeerRecord.of(row)) if row else None
        else:
            row = (
                await connection.execute(
                    select(schema.tokens).where(
                        schema.tokens.c.hash == token_hash(text), schema.tokens.c.kind == kind
                    )
                )
            ).one_or_none()
            principal = Principal(kind, token=TokenRecord.of(row)) if row else None
    if principal is None:
        raise _invalid()
    if principal.token is not None:
        check_token(principal.token, now_ms(), spent=spent)
    if kind not in allowed:
        raise ApiProblem(
            "forbidden", f"this needs a token of kind {' or '.join(allowed)}, and this is {kind}"
        )
    return principal


def check_token(token: TokenRecord, now: int, *, spent: bool) -> None:
    """Refuse a token that holds no more.

    Raises:
        ApiProblem: ``token_revoked``, ``token_expired`` or ``token_used_up``.
    """
    if token.revoked_at is not None:
        raise ApiProblem(
            "token_revoked",
            f"the token {token.id} was revoked at {rfc3339(token.revoked_at)}; ask for a new one",
        )
    if token.expires_at is not None and token.expires_at <= now:
        raise ApiProblem(
            "token_expired",
            f"the token {token.id} expired at {rfc3339(token.expires_at)}; ask for a new one",
        )
    if not spent and token.uses is not None and token.used >= token.uses:
        raise used_up(token)


def used_up(token: TokenRecord) -> ApiProblem:
    """The 401 of a token without uses left."""
    return ApiProblem(
        "token_used_up",
        f"the token {token.id} was good for {token.uses} enrollments and has had them; "
        "ask for a new one",
    )


def peer_not_found(peer_id: str) -> ApiProblem:
    """The 404 that a foreign peer and one that never was have in common."""
    return ApiProblem("peer_not_found", f"there is no peer {peer_id} for this token")


def check_alive(peer: PeerRecord, now: int) -> None:
    """Refuse an identity that has ended.

    Raises:
        ApiProblem: ``peer_not_found`` or ``peer_expired``.
    """
    if peer.state == "deleted":
        raise ApiProblem(
            "peer_not_found", f"the identity {peer.id} was revoked; enroll anew if that is wanted"
        )
    if not peer.alive(now):
        raise ApiProblem(
            "peer_expired",
            f"the identity {peer.id} expired at {rfc3339(peer.expires_at)} and cannot be renewed; "
            "enroll anew",
        )


def _invalid() -> ApiProblem:
    return ApiProblem(
        "invalid_token",
        "this server does not know the bearer token; check that it is whole and of this server",
    )
