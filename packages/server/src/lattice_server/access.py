"""Who calls: from a bearer token to what its owner may do."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from lattice_server import workload
from lattice_server.clock import now_ms, rfc3339
from lattice_server.credentials import TokenKind, token_hash, token_kind
from lattice_server.problems import ApiProblem
from lattice_server.store import statements
from lattice_server.store.records import PeerRecord, TokenRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, as far as it says and the connection shows.

    ``authorization`` is the header's value, ``address`` the client's, or what a trusted proxy says
    it is; empty where there is none.
    """

    authorization: str | None = field(repr=False)
    address: str = ""

    def bearer(self) -> str:
        """The token.

        Raises:
            ApiProblem: ``missing_token``.
        """
        scheme, _, text = (self.authorization or "").partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text:
            raise ApiProblem(
                "missing_token",
                "no bearer token was sent; add the header Authorization: Bearer lt-…",
            )
        return text


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a valid token.

    ``token`` for a managed one, ``peer`` for an enrollment token; ``secret`` is its text. For a JWT
    ``token`` is the trust that it falls under, and ``subject`` whose it is.
    """

    kind: TokenKind
    token: TokenRecord | None = None
    peer: PeerRecord | None = None
    secret: str = field(default="", repr=False)
    subject: str | None = None

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
    control: ControlPlane,
    caller: Caller | None,
    *allowed: TokenKind,
    spent: bool = False,
    workspace: str | None = None,
) -> Principal:
    """Find out who calls.

    Args:
        control: the control plane.
        caller: with the ``Authorization`` header.
        allowed: the kinds of token that may do this.
        spent: accept a token without uses left (the caller counts uses by itself).
        workspace: where it is to be, for a JWT that several workspaces trust.

    Raises:
        ApiProblem: 401 for a missing or bad token, 403 for one of another kind or from elsewhere.
    """
    caller = caller or Caller(None)
    text = caller.bearer()
    hashed = token_hash(text)
    async with control.failures.attempt(caller.address, hashed):
        principal = await _recognise(
            control, text, jwt="trust" in allowed, spent=spent, workspace=workspace
        )
        if principal.token is not None:
            check_source(principal.token, caller.address)
    if principal.kind not in allowed:
        raise ApiProblem(
            "forbidden",
            f"this needs a token of kind {' or '.join(allowed)}, and this is {principal.kind}",
        )
    return principal


async def _recognise(
    control: ControlPlane, text: str, *, jwt: bool, spent: bool, workspace: str | None
) -> Principal:
    """Whose bearer it is, if it holds."""
    kind = token_kind(text)
    if kind is not None:
        principal = await _owner(control, kind, text)
    elif jwt and workload.looks_like_jwt(text):
        token, subject = await workload.recognise(control, text, workspace)
        principal = Principal("trust", token=token, subject=subject)
    else:
        principal = None
    if principal is None:
        raise _invalid()
    if principal.token is not None:
        check_token(principal.token, now_ms(), spent=spent)
    return principal


async def _owner(control: ControlPlane, kind: TokenKind, text: str) -> Principal | None:
    """Whose token it is.

    Tokens are looked up by their hash: how long that takes says nothing about a token. Whether the
    row found is the right one is decided here, in constant time, and not by a database's collation.
    """
    hashed, now = token_hash(text), now_ms()
    async with control.database.look() as connection:
        if kind == "enrollment":
            rows = await connection.fetch(statements.PEER_BY_TOKEN, hash=hashed)
            peer = PeerRecord(*rows[0]) if rows else None
            if peer is None or not same_secret(peer.token_hash, hashed):
                return None
            return Principal(kind, peer=peer, secret=text)
        rows = await connection.fetch(statements.TOKEN_BY_HASH, hash=hashed, now=now, kind=kind)
    if not rows:
        return None
    *columns, current, previous = rows[0]
    if not (same_secret(current, hashed) or same_secret(previous or "", hashed)):
        return None
    return Principal(kind, token=TokenRecord(*columns))


def same_secret(one: str, other: str) -> bool:
    """Whether two secrets, or hashes of them, are equal; takes as long for each wrong one."""
    return hmac.compare_digest(one.encode(), other.encode())


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


def check_source(token: TokenRecord, address: str) -> None:
    """Refuse a token that is sent from a network it is not for.

    Raises:
        ApiProblem: ``source_not_permitted``.
    """
    if token.sources is None or within_networks(address, token.sources):
        return
    raise ApiProblem(
        "source_not_permitted",
        f"the token {token.id} may not be used from {address or 'here'}; use it where it is meant "
        "to be used, or ask for one without sources",
    )


def within_networks(address: str, networks: Iterable[str]) -> bool:
    """Whether an address is in one of these networks; what is no address is in none."""
    try:
        known = ip_address(address)
    except ValueError:
        return False
    if isinstance(known, IPv6Address) and known.ipv4_mapped is not None:
        known = known.ipv4_mapped
    return any(known in ip_network(network) for network in networks)


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
