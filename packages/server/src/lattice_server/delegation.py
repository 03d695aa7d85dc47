"""Delegation: an agent hands a part of what it has, never more, to a sub-agent.

It gets a token that is good for one enrollment and holds as long as the agent does. The sub-agent's
life is cut to its parent's at each change of either, and ends with it (:mod:`endings`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, or_, select, update

from lattice_sdk.durations import format_duration
from lattice_sdk.wire import DelegateRequest, EnrollRequest
from lattice_server import attenuation, destinations, policy, terms
from lattice_server.access import Principal, check_alive, peer_not_found, same_secret
from lattice_server.clock import now_ms, rfc3339, to_ms
from lattice_server.credentials import new_id, new_token, token_hash
from lattice_server.policy import Grant
from lattice_server.presets import NOTHING, Presets
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.database import Transaction
from lattice_server.store.events import peer_event
from lattice_server.store.queries import (
    descendants,
    lines_of,
    peer_by_id,
    peer_objects,
    presets_of_workspace,
    services_of,
)
from lattice_server.store.records import PeerRecord, ServiceRecord, TokenRecord

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane


# Sub-agents of a line that have ended not long ago, beside those that live.
RESTING_FACTOR = 4


async def delegate(
    control: ControlPlane, peer_id: str, principal: Principal, body: DelegateRequest
) -> dict[str, Any]:
    """Make a token with which one sub-agent enrolls.

    Raises:
        ApiProblem: ``delegation_not_permitted``, ``preset_not_permitted``, ``ttl_not_permitted``,
            ``peer_not_found``, ``peer_expired``, …
    """
    if principal.peer is None or principal.peer.id != peer_id:
        raise peer_not_found(peer_id)
    secret = new_token("delegation")
    async with control.database.write() as tx:
        parent = await peer_by_id(tx.connection, peer_id)
        now = now_ms()
        if parent is None or not same_secret(parent.token_hash, principal.peer.token_hash):
            raise peer_not_found(peer_id)
        check_alive(parent, now)
        _check_may_delegate(parent)
        presets = await presets_of_workspace(tx.connection, parent.workspace_id)
        issuer = await _issuer_of_line(tx, parent)
        token = _token(parent, issuer, body, now, presets)
        asked = _as_enrollment(body, token)
        granted = terms.for_agent(control.settings, token, asked, presets)
        if granted.allow:
            await _check_allow(tx, parent, granted.allow)
        if body.allow is not None:
            token = replace(token, delegated={**(token.delegated or {}), "allow": granted.allow})
        await _check_room(control, tx, parent, now)
        await tx.connection.execute(
            insert(schema.tokens).values(hash=token_hash(secret), **token.values())
        )
        await control.events.append(tx, [_delegated(parent, token, now)])
    control.metrics.delegations.inc()
    control.failures.passed(token_hash(secret))
    limit = now + (token.max_lifetime or 0)
    return {
        "enrollmentToken": secret,
        "expiresAt": rfc3339(token.expires_at or now),
        "parentRef": parent.id,
        "subAgentName": body.sub_agent_name,
        "policyPreset": granted.preset,
        "workspaceId": parent.workspace_id,
        "maxExpiresAt": rfc3339(min(limit, parent.max_expires_at or limit)),
    }


async def inherit(tx: Transaction, token: TokenRecord, peer: PeerRecord) -> PeerRecord:
    """A sub-agent that enrolls, cut to what its parent has at this moment.

    Raises:
        ApiProblem: ``token_revoked`` when the parent has ended, ``forbidden`` when it does not
            reach what the sub-agent asks for.
    """
    now = now_ms()
    parent = await peer_by_id(tx.connection, token.parent_id or "")
    if parent is None or not parent.alive(now):
        raise ApiProblem(
            "token_revoked",
            f"the agent {token.parent_id} that this token was delegated by has ended, and what it "
            "delegated with it; ask for a new token",
        )
    if peer.allow:
        await _check_allow(tx, parent, peer.allow)
    return replace(
        cut_to(peer, parent),
        parent_id=parent.id,
        root_id=parent.root_id or parent.id,
        depth=parent.depth + 1,
        delegation_depth=token.delegation_depth or 0,
    )


def cut_to(peer: PeerRecord, parent: PeerRecord) -> PeerRecord:
    """The peer with no date of it beyond its parent's."""
    latest = peer.max_expires_at
    if parent.max_expires_at is not None:
        latest = min(latest or parent.max_expires_at, parent.max_expires_at)
    expires = min(peer.expires_at, parent.expires_at)
    return replace(
        peer,
        max_expires_at=latest,
        expires_at=expires if latest is None else min(expires, latest),
    )


async def shorten_descendants(control: ControlPlane, tx: Transaction, parent: PeerRecord) -> None:
    """After an agent's deadline has moved forward: nobody that comes from it ends later."""
    cut: list[PeerRecord] = []
    line = {parent.id: parent}
    for peer in await descendants(tx.connection, [parent.id]):
        shorter = cut_to(peer, line[peer.parent_id or ""])
        if shorter != peer:
            shorter = replace(shorter, version=peer.version + 1)
            cut.append(shorter)
        line[peer.id] = shorter
    if not cut:
        return
    for peer in cut:
        await tx.connection.execute(
            update(schema.peers).where(schema.peers.c.id == peer.id).values(**peer.values())
        )
    objects = await peer_objects(tx.connection, parent.workspace_id, cut, now_ms())
    tx.after_commit.append(lambda: control.hub.publish(objects))


def _token(
    parent: PeerRecord,
    issuer: TokenRecord,
    body: DelegateRequest,
    now: int,
    presets: Presets,
) -> TokenRecord:
    """The sub-agent's token: what the first of its line came by binds it as well."""
    humble = attenuation.preset_within("sandboxed", parent.preset, presets)
    preset = body.policy_preset or ("sandboxed" if humble else parent.preset)
    _check_preset(parent, preset, presets)
    ttl = terms.renewal(parent, body.ttl)
    lifetime = (parent.max_expires_at or parent.expires_at) - parent.created_at
    if body.max_lifetime is not None:
        lifetime = min(lifetime, max(terms.SHORTEST_TTL_MS, to_ms(body.max_lifetime)))
    depth = parent.delegation_depth - 1
    if body.delegation_depth is not None:
        depth = min(depth, body.delegation_depth)
    return TokenRecord(
        n=0,
        id=new_id("token"),
        kind="delegation",
        workspace_id=parent.workspace_id,
        service=None,
        presets=[preset],
        allow_isolated=presets.get(preset, NOTHING).own_list,
        max_ttl=min(ttl, lifetime),
        max_lifetime=lifetime,
        uses=1,
        used=0,
        created_at=now,
        expires_at=min(now + min(ttl, lifetime), parent.expires_at),
        revoked_at=None,
        agent_types=issuer.agent_types,
        sources=issuer.sources,
        delegation_depth=depth,
        parent_id=parent.id,
        delegated={"name": body.sub_agent_name, "agentType": body.agent_type},
    )


async def _issuer_of_line(tx: Transaction, parent: PeerRecord) -> TokenRecord:
    """What the first of a line was enrolled with.

    The tokens of those in between say the same, and may be forgotten already.
    """
    root = parent if parent.root_id is None else await peer_by_id(tx.connection, parent.root_id)
    tokens = schema.tokens.c
    query = select(schema.tokens).where(tokens.id == (root or parent).issuer)
    return TokenRecord.of((await tx.connection.execute(query)).one())


def _as_enrollment(body: DelegateRequest, token: TokenRecord) -> EnrollRequest:
    """The enrollment that the sub-agent is to make, to be checked as it will be."""
    return EnrollRequest(
        agent_name=body.sub_agent_name,
        agent_type=body.agent_type,
        policy_preset=_preset(token),
        allow=body.allow or [],
    )


def _check_may_delegate(parent: PeerRecord) -> None:
    if parent.kind != "agent":
        raise ApiProblem("delegation_not_permitted", "only agents delegate, and this is a service")
    if parent.delegation_depth < 1:
        raise ApiProblem(
            "delegation_not_permitted",
            f"the agent {parent.id} may not delegate: the depth that its token permits is used up; "
            "let an agent above it delegate, or ask for a token with a greater delegationDepth",
        )


def _check_preset(parent: PeerRecord, preset: str, presets: Presets) -> None:
    if preset not in presets:
        return  # terms.for_agent says what there is
    if not attenuation.preset_within(preset, parent.preset, presets):
        raise ApiProblem(
            "preset_not_permitted",
            f"{preset} reaches further than {parent.preset}, which is what the agent {parent.id} "
            f"has; delegate {parent.preset} or isolated",
            errors=[{"field": "policyPreset", "message": f"wider than {parent.preset}"}],
        )


async def _check_allow(tx: Transaction, parent: PeerRecord, allow: list[dict[str, Any]]) -> None:
    """Refuse an allow list that names what the parent does not reach itself at this moment."""
    services = await services_of(tx.connection, parent.workspace_id)
    presets = await presets_of_workspace(tx.connection, parent.workspace_id)
    lines = await lines_of(
        tx.connection, parent.workspace_id, [parent], now_ms(), services, presets
    )
    callable_back = presets.get(parent.preset, NOTHING).accepts_agents
    wishes = [wish for rule in allow for wish in _wishes(rule, services)]
    lacking = lines.lacks(parent.id, wishes) + [
        wish for wish in wishes if wish.grant.to == parent.address and not callable_back
    ]
    if lacking:
        rule = lacking[0].rule
        wanted = f"{rule['to']}:{rule['port']}/{rule['protocol']}"
        raise ApiProblem(
            "forbidden",
            f"allow names {wanted}, which the agent {parent.id} does not reach itself; leave it "
            "out",
            errors=[
                {"field": "allow", "message": f"{wanted} is not within the parent's own reach"}
            ],
        )


def _wishes(rule: dict[str, Any], services: list[ServiceRecord]) -> list[attenuation.Wish]:
    """What comes of a rule: a service's host name is reached at the service's address."""
    wanted = Grant(rule["to"], rule["protocol"], rule["port"])
    offered = list(policy.offered([wanted], [service.rule() for service in services]))
    if offered:
        return [attenuation.Wish(rule, grant) for grant in offered]
    named = destinations.parse(rule["to"]).kind in ("name", "pattern")
    of_service = any(rule["to"] in service.hostnames for service in services)
    return [attenuation.Wish(rule, wanted, named=named and not of_service)]


async def _check_room(control: ControlPlane, tx: Transaction, parent: PeerRecord, now: int) -> None:
    """Count the line and the tokens it has not used, against a flood of sub-agents.

    Those that have ended count as long as their addresses rest: who begins and ends sub-agents
    without pause would have all addresses otherwise.
    """
    peers, tokens = schema.peers.c, schema.tokens.c
    root = parent.root_id or parent.id
    count = select(func.count()).select_from(schema.peers).where(peers.root_id == root)
    active = await tx.connection.scalar(count.where(peers.state == "active"))
    rests_since = now - to_ms(control.settings.quarantine)
    resting = await tx.connection.scalar(
        count.where(peers.state.in_(("deleted", "expired")), peers.ended_at > rests_since)
    )
    line = select(peers.id).where(or_(peers.id == root, peers.root_id == root))
    unused = await tx.connection.scalar(
        select(func.count())
        .select_from(schema.tokens)
        .where(
            tokens.parent_id.in_(line),
            tokens.used == 0,
            tokens.revoked_at.is_(None),
            tokens.expires_at > now,
        )
    )
    limit, there = control.settings.sub_agent_limit, (active or 0) + (unused or 0)
    if there >= limit:
        raise ApiProblem(
            "delegation_not_permitted",
            f"the agent {root} has {limit} sub-agents and unused delegations beneath it, which is "
            "the most; end some, or let tokens expire",
        )
    if there + (resting or 0) >= limit * RESTING_FACTOR:
        raise ApiProblem(
            "delegation_not_permitted",
            f"the agent {root} had {limit * RESTING_FACTOR} sub-agents within "
            f"{format_duration(control.settings.quarantine)}, which is the most, as their "
            "addresses rest that long; wait, or let sub-agents live longer",
        )


def _preset(token: TokenRecord) -> str | None:
    return token.presets[0] if token.presets else None


def _delegated(parent: PeerRecord, token: TokenRecord, now: int) -> dict[str, Any]:
    delegated = token.delegated or {}
    return peer_event(
        "delegated",
        now,
        parent,
        subAgentName=delegated["name"],
        subAgentPreset=_preset(token),
        token=token.id,
        expiresAt=rfc3339(token.expires_at or now),
    )
