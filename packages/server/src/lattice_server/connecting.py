"""A connector takes the overlay address of its tool service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import insert

from lattice_server import terms
from lattice_server.access import Principal
from lattice_server.answers import identity_answer
from lattice_server.clock import now_ms
from lattice_server.credentials import new_token, token_hash
from lattice_server.identities import enrolled, holder_of_key, key_pair
from lattice_server.problems import ApiProblem
from lattice_server.publication import publish, store, wait_or_undo
from lattice_server.store import schema
from lattice_server.store.queries import peer_by_id, service_by_name
from lattice_server.store.records import PeerRecord
from lattice_server.tokens import check_holds

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

SERVICE_PRESET = "service"


async def connect_service(
    control: ControlPlane, principal: Principal, workspace: str, name: str, request: terms.Connect
) -> dict[str, Any]:
    """Let a connector take a service's address. A later connector takes over from an earlier one.

    Raises:
        ApiProblem: as the token, the request or the gateway demand.
    """
    token = principal.granted()
    gateway = control.gateway()
    ttl, max_ttl = terms.lifetime(control.settings, token, request.ttl)
    private, public = key_pair(request.public_key)
    secret = new_token("enrollment")
    async with control.database.write() as tx:
        await check_holds(tx, token.id)
        service = await service_by_name(tx.connection, workspace, name)
        if service is None:
            raise ApiProblem(
                "service_not_found",
                f"the workspace has no service {name}; add it first (POST /api/v1/services)",
            )
        if private is None:
            holder = await holder_of_key(control, tx, public)
            if holder is not None and holder.id != service.peer_id:
                raise ApiProblem(
                    "invalid_public_key", "this public key is in use; make a new key pair"
                )
        before = await peer_by_id(tx.connection, service.peer_id)
        now = now_ms()
        if before is None or before.state != "active":
            await control.room.enter(tx, gateway)
        peer = PeerRecord(
            id=service.peer_id,
            kind="service",
            name=name,
            agent_type=service.kind,
            workspace_id=workspace,
            preset=SERVICE_PRESET,
            allow=[],
            address=service.address,
            public_key=public,
            token_hash=token_hash(secret),
            issuer=token.id,
            ttl=ttl,
            max_ttl=max_ttl,
            created_at=now,
            expires_at=now + ttl,
            max_expires_at=None if token.max_lifetime is None else now + token.max_lifetime,
            renewals=0,
            version=(before.version if before else 0) + 1,
            state="active",
            ended_at=None,
        )
        if before is None:
            await tx.connection.execute(insert(schema.peers).values(**peer.values()))
        else:
            await store(tx, peer)
        await control.events.append(tx, [enrolled(peer)])
        done = await publish(control, tx, peer, before)
    await wait_or_undo(control, done, None)
    control.metrics.enrollments.inc()
    control.failures.passed(peer.token_hash)
    return identity_answer(
        control.settings, gateway, peer, secret, private, done.object, [], done.ingress
    )
