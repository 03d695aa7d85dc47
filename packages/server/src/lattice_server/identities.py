"""The life of an identity on the server: enroll, renew, remove.

Each change is committed, published to the gateway and answered once the gateway has it. If it does
not get it in time the change is taken back, so that a refused call leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import IntegrityError

from lattice_sdk.wire import EnrollRequest, RenewRequest
from lattice_server import delegation, endings, names, terms, tokens
from lattice_server.access import (
    Principal,
    check_alive,
    peer_not_found,
    same_secret,
    used_up,
)
from lattice_server.answers import identity_answer
from lattice_server.clock import now_ms, rfc3339
from lattice_server.credentials import new_id, new_key_pair, new_token, token_hash
from lattice_server.hub import GatewayInfo
from lattice_server.presets import BUILT_IN, Presets
from lattice_server.problems import ApiProblem
from lattice_server.publication import Publication, publish, store, wait_or_undo
from lattice_server.store import statements
from lattice_server.store.connection import Connection
from lattice_server.store.database import Transaction
from lattice_server.store.events import peer_event
from lattice_server.store.queries import (
    peer_by_id,
    presets_of_workspace,
    services_of,
)
from lattice_server.store.records import PeerRecord, TokenRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

# How long a spent token takes up the identity that it made; the SDK gives up after 30 s.
TAKE_UP_MS = 120_000


async def enroll(
    control: ControlPlane,
    principal: Principal,
    request: EnrollRequest,
    abandoned: Callable[[], Awaitable[bool]] | None = None,
) -> dict[str, Any]:
    """Make an identity, or take the one up again that has this key.

    Args:
        control: the control plane.
        principal: whose token it is.
        request: what is asked for.
        abandoned: whether the caller has gone; an identity that nobody hears of is taken back.

    Raises:
        ApiProblem: as the token, the request, the address pool or the gateway demand.
    """
    token = principal.granted()
    gateway = control.gateway()
    presets: Presets = BUILT_IN
    if terms.preset_of(token, request) not in presets or token.kind == "delegation":
        async with control.database.look() as connection:
            presets = await presets_of_workspace(connection, token.workspace_id or "")
    granted = terms.for_agent(control.settings, token, request, presets)
    private, public = key_pair(request.public_key)
    secret = new_token("enrollment")
    now = now_ms()
    peer = PeerRecord(
        id=new_id("peer"),
        kind="agent",
        name=request.agent_name,
        agent_type=granted.agent_type,
        workspace_id=granted.workspace,
        preset=granted.preset,
        allow=granted.allow,
        address="",
        public_key=public,
        token_hash=token_hash(secret),
        issuer=token.id,
        ttl=granted.ttl,
        max_ttl=granted.max_ttl,
        created_at=now,
        expires_at=now + granted.ttl,
        max_expires_at=now + granted.max_lifetime,
        renewals=0,
        version=1,
        state="active",
        ended_at=None,
        delegation_depth=(
            control.settings.delegation_depth
            if token.delegation_depth is None
            else token.delegation_depth
        ),
        subject=principal.subject,
    )
    async with control.lanes.enter(f"{token.id} {principal.subject or ''}"):
        for attempt in range(3):
            try:
                done = await _commit_agent(
                    control, gateway, token, peer, own_key=private is not None
                )
                break
            except IntegrityError:
                # Another process on the same database was faster, or the pool was behind.
                await control.reload_addresses()
                if attempt == 2:
                    raise
        await wait_or_undo(control, done, token, abandoned)
    control.metrics.enrollments.inc()
    control.failures.passed(peer.token_hash)
    return identity_answer(
        control.settings,
        gateway,
        done.peer,
        secret,
        private,
        done.object,
        done.services,
        done.ingress,
    )


async def _commit_agent(
    control: ControlPlane,
    gateway: GatewayInfo,
    token: TokenRecord,
    peer: PeerRecord,
    *,
    own_key: bool,
) -> Publication:
    taken: list[str] = []
    try:
        async with control.database.write() as tx:
            if token.kind == "delegation":
                peer = await delegation.inherit(tx, token, peer)
            if not own_key:
                known = await holder_of_key(control, tx, peer.public_key)
                if known is not None:
                    return await _take_up(control, tx, token, known, peer)
            await tokens.use(tx, token)
            await control.room.enter(tx, gateway)
            taken.append(await control.take_address(tx, peer.id, peer.workspace_id))
            peer = replace(peer, address=taken[0])
            if peer.allow:
                services = await services_of(tx.connection, peer.workspace_id)
                peer = await names.claim(control, tx, token, peer, services, taken)
            await tx.connection.run(statements.INSERT_PEER, peer.values())
            await control.events.append(tx, [enrolled(peer)])
            return await publish(control, tx, peer, None)
    except IntegrityError:
        raise
    except BaseException:
        for address in taken:
            control.give_back(peer.workspace_id, address)
        raise


async def _take_up(
    control: ControlPlane, tx: Transaction, token: TokenRecord, known: PeerRecord, asked: PeerRecord
) -> Publication:
    """The same key again: the same identity with a new enrollment token; the old one is void."""
    same = (
        known.kind == "agent"
        and (known.issuer, known.subject) == (token.id, asked.subject)
        and known.workspace_id == asked.workspace_id
        and (known.name, known.agent_type, known.preset, known.asked())
        == (asked.name, asked.agent_type, asked.preset, asked.allow)
    )
    if not same:
        raise ApiProblem(
            "invalid_public_key",
            "this public key cannot be enrolled with this request; make a new key pair",
            errors=[{"field": "publicKey", "message": "make a new key pair"}],
        )
    await tokens.check_holds(tx, token.id)
    if token.uses is not None and token.used >= token.uses:
        _check_unanswered(token, known)
    limit = known.max_expires_at or asked.expires_at
    peer = replace(
        known,
        token_hash=asked.token_hash,
        ttl=asked.ttl,
        max_ttl=asked.max_ttl,
        expires_at=min(asked.expires_at, limit),
        version=known.version + 1,
    )
    await store(tx, peer, known)
    await delegation.shorten_descendants(control, tx, peer)
    if _is_recorded(control, peer, "again"):
        await control.events.append(tx, [enrolled(peer, again=True)])
    return await publish(control, tx, peer, known)


def _check_unanswered(token: TokenRecord, known: PeerRecord) -> None:
    """A spent token with a known key is a client that missed its answer, or a thief of the token.

    The public key is no secret. What tells them apart is that a client tries again soon, and that
    one that had its answer has renewed.
    """
    if known.renewals or now_ms() > known.created_at + TAKE_UP_MS:
        raise used_up(token)


async def renew(
    control: ControlPlane, peer_id: str, principal: Principal, request: RenewRequest
) -> dict[str, Any]:
    """Move the deadline of a living identity, and change its key if asked to.

    Args:
        control: the control plane.
        peer_id: as the path says.
        principal: the owner of the enrollment token, which stays the same and is answered again.
        request: the body.

    Raises:
        ApiProblem: ``peer_not_found``, ``peer_expired``, ``ttl_not_permitted``, …
    """
    if principal.peer is None or principal.peer.id != peer_id:
        raise peer_not_found(peer_id)
    check_alive(principal.peer, now_ms())
    gateway = control.gateway()
    async with control.database.write() as tx:
        before = await peer_by_id(tx.connection, peer_id)
        now = now_ms()
        if before is None or not same_secret(before.token_hash, principal.peer.token_hash):
            raise peer_not_found(peer_id)
        check_alive(before, now)
        if before.kind == "service":
            # It can be renewed without end, so its token has to hold all the time.
            await tokens.check_holds(tx, before.issuer)
        ttl = terms.renewal(before, request.ttl)
        expires = now + ttl
        if before.max_expires_at is not None:
            expires = min(expires, before.max_expires_at)
        if before.parent_id is not None:
            parent = await peer_by_id(tx.connection, before.parent_id)
            expires = min(expires, parent.expires_at if parent else before.expires_at)
        key = request.public_key or before.public_key
        if key != before.public_key and await holder_of_key(control, tx, key) is not None:
            raise ApiProblem("invalid_public_key", "this public key is in use; make a new key pair")
        peer = replace(
            before,
            public_key=key,
            ttl=ttl,
            expires_at=expires,
            renewals=before.renewals + 1,
            version=before.version + 1,
        )
        await store(tx, peer, before)
        if peer.expires_at < before.expires_at:
            await delegation.shorten_descendants(control, tx, peer)
        changed = {"keyChanged": True} if key != before.public_key else {}
        if _is_recorded(control, peer, "key" if changed else "deadline"):
            told = {"expiresAt": rfc3339(peer.expires_at), "renewals": peer.renewals, **changed}
            await control.events.append(tx, [peer_event("renewed", now, peer, **told)])
        done = await publish(control, tx, peer, before)
    await wait_or_undo(control, done, None)
    control.metrics.renewals.inc()
    return identity_answer(
        control.settings,
        gateway,
        peer,
        principal.secret,
        None,
        done.object,
        done.services,
        done.ingress,
    )


def _is_recorded(control: ControlPlane, peer: PeerRecord, what: str) -> bool:
    """Whether what an identity may repeat as it likes gets an event of its own this time.

    The log is not to be filled by one identity. What it leaves out is in the next one's count; a
    new key is counted apart, so that nobody hides one behind renewals.
    """
    key = f"{peer.id} {what}"
    if control.repeated.wait(key) > 0:
        return False
    control.repeated.take(key)
    return True


async def remove(control: ControlPlane, peer_id: str, principal: Principal) -> None:
    """End an identity; returns once the gateway has cut it off, or after a bounded wait.

    Raises:
        ApiProblem: ``peer_not_found`` when there never was one, or not for this caller.
    """
    async with control.database.write() as tx:
        peer = await peer_by_id(tx.connection, peer_id)
        if peer is None or not await may_act_on(tx.connection, principal, peer):
            raise peer_not_found(peer_id)
        if peer.state == "active":
            by: str = principal.kind
            if principal.peer is not None:
                by = "itself" if principal.peer.id == peer.id else "parent"
            await endings.end_peers(control, tx, [peer], "revoked", by=by)
    if control.hub.stream is not None:
        # Also for one that has ended already: a second DELETE must not overtake the first.
        await control.hub.wait(control.hub.revision, control.settings.delete_wait.total_seconds())


async def may_act_on(connection: Connection, principal: Principal, peer: PeerRecord) -> bool:
    """Whether the peer exists for this caller: its own, of its line, or of its workspace."""
    if principal.peer is None:
        return principal.may_see(peer.workspace_id)
    if principal.peer.id == peer.id:
        return True
    above = peer.parent_id
    while above is not None and above != principal.peer.id:
        parent = await peer_by_id(connection, above)
        above = parent.parent_id if parent else None
    return above is not None


def key_pair(public_key: str | None) -> tuple[str | None, str]:
    """(private, public): the client's public key, or a pair made here."""
    return (None, public_key) if public_key else new_key_pair()


async def holder_of_key(control: ControlPlane, tx: Transaction, key: str) -> PeerRecord | None:
    """The living peer with this key. One whose time is over is ended on the way."""
    stream = control.hub.stream
    if stream is not None and stream.info.public_key == key:
        raise ApiProblem("invalid_public_key", "this public key is in use; make a new key pair")
    rows = await tx.connection.fetch(statements.LIVE_PEER_BY_KEY, key=key)
    if not rows:
        return None
    peer = PeerRecord(*rows[0])
    if peer.alive(now_ms()):
        return peer
    await endings.end_peers(control, tx, [peer], "expired")
    return None


def enrolled(peer: PeerRecord, **data: Any) -> dict[str, Any]:
    """The event of an enrollment."""
    return peer_event(
        "enrolled",
        now_ms(),
        peer,
        agentType=peer.agent_type,
        expiresAt=rfc3339(peer.expires_at),
        token=peer.issuer,
        **({"parentRef": peer.parent_id} if peer.parent_id else {}),
        **({"subject": peer.subject} if peer.subject else {}),
        **data,
    )
