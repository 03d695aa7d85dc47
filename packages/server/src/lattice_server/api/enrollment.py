"""The Enrollment API: enroll, connect a service, renew, delete, look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import select

from lattice_sdk.wire import (
    DelegateRequest,
    DelegateResponse,
    EnrollRequest,
    EnrollResponse,
    Peer,
    PeerPage,
    RenewRequest,
)
from lattice_server import delegation, identities
from lattice_server.access import Caller, Principal, authenticate, peer_not_found
from lattice_server.answers import peer_answer, peer_reference
from lattice_server.api.common import Authorization, Control, Cursor, Limit, number_cursor, problems
from lattice_server.clock import now_ms, rfc3339
from lattice_server.control import ControlPlane
from lattice_server.problems import ApiProblem
from lattice_server.store import schema
from lattice_server.store.queries import ancestors, descendants, peer_by_id
from lattice_server.store.records import PeerRecord

router = APIRouter(tags=["enrollment"])

PeerId = Annotated[str, Path(max_length=64, examples=["peer-4x2kq7zj5m3abcde"])]
_NO_STORE = {"Cache-Control": "no-store"}
_ENROLL_EXAMPLE = {
    "agentName": "code-executor-001",
    "agentType": "code-executor",
    "workspaceId": "ws-prod-agents",
    "ttl": "1h",
    "policyPreset": "sandboxed",
}


@router.post(
    "/api/v1/agent-enroll",
    status_code=201,
    response_model=None,
    summary="Enroll an agent",
    responses={201: {"model": EnrollResponse}, **problems(400, 401, 403, 404, 413, 422, 503)},
)
async def enroll(
    request: Request,
    control: Control,
    body: Annotated[
        EnrollRequest, Body(openapi_examples={"published": {"value": _ENROLL_EXAMPLE}})
    ],
    authorization: Authorization = None,
) -> Response:
    """Give an agent its identity.

    Bearer: a workspace token, for a sub-agent a delegated one, or a JWT that a workspace trusts.

    Answered once the gateway has the peer; for a caller that has hung up by then it is taken back.
    The same ``publicKey`` with the same request is the same identity: its id and address, and a new
    enrollment token that replaces the one before.
    """
    answer = await enrolled(control, body, authorization, request.is_disconnected)
    return JSONResponse(answer, status_code=201, headers=_NO_STORE)


async def enrolled(
    control: ControlPlane,
    body: EnrollRequest,
    caller: Caller | None,
    abandoned: Callable[[], Awaitable[bool]],
) -> dict[str, Any]:
    """The answer to an enrollment."""
    principal = await authenticate(
        control,
        caller,
        *("workspace", "delegation", "trust"),
        spent=True,
        workspace=body.workspace_id,
    )
    return await identities.enroll(control, principal, body, abandoned)


@router.post(
    "/api/v1/peers/{peer_id}/renew",
    response_model=None,
    summary="Renew an identity",
    responses={200: {"model": EnrollResponse}, **problems(400, 401, 403, 404, 410, 413, 422, 503)},
)
async def renew(
    control: Control,
    peer_id: PeerId,
    body: RenewRequest | None = None,
    authorization: Authorization = None,
) -> Response:
    """Move the deadline, never past ``maxExpiresAt``. Bearer: the enrollment token.

    ``ttl`` left out means what the identity had. A new ``publicKey`` rotates the key.
    """
    answer = await renewed(control, peer_id, body or RenewRequest(), authorization)
    return JSONResponse(answer, headers=_NO_STORE)


async def renewed(
    control: ControlPlane, peer_id: str, body: RenewRequest, caller: Caller | None
) -> dict[str, Any]:
    """The answer to a renewal."""
    principal = await authenticate(control, caller, "enrollment")
    async with control.lanes.enter(peer_id):
        return await identities.renew(control, peer_id, principal, body)


@router.post(
    "/api/v1/agents/{peer_id}/delegate",
    status_code=201,
    response_model=None,
    summary="Delegate to a sub-agent",
    responses={
        201: {"model": DelegateResponse},
        **problems(400, 401, 403, 404, 410, 413, 422),
    },
)
async def delegate(
    control: Control, peer_id: PeerId, body: DelegateRequest, authorization: Authorization = None
) -> Response:
    """Make a token with which one sub-agent enrolls. Bearer: the agent's enrollment token.

    The sub-agent has never more than the agent: preset, grants, services and life. It ends with it.
    """
    principal = await authenticate(control, authorization, "enrollment")
    async with control.lanes.enter(peer_id):
        answer = await delegation.delegate(control, peer_id, principal, body)
    return JSONResponse(answer, status_code=201, headers=_NO_STORE)


@router.delete(
    "/api/v1/peers/{peer_id}",
    status_code=204,
    response_class=Response,
    summary="Revoke an identity",
    responses=problems(401, 403, 404),
)
async def delete_peer(
    control: Control, peer_id: PeerId, authorization: Authorization = None
) -> Response:
    """End an identity and its sub-agents; also when it has ended already.

    Bearer: its enrollment token or that of an agent it comes from, its workspace's, or admin.
    """
    await deletion(control, peer_id, authorization)
    return Response(status_code=204)


async def deletion(control: ControlPlane, peer_id: str, caller: Caller | None) -> None:
    """Do what is asked for by a removal."""
    principal = await authenticate(control, caller, "enrollment", "workspace", "admin")
    async with control.lanes.enter(peer_id):
        await identities.remove(control, peer_id, principal)


@router.get(
    "/api/v1/peers/{peer_id}",
    response_model=None,
    summary="Look at an identity",
    responses={200: {"model": Peer}, **problems(401, 403, 404, 410)},
)
async def get_peer(
    control: Control, peer_id: PeerId, authorization: Authorization = None
) -> Response:
    """A living identity, with the line of delegations it stands in.

    Bearer: its enrollment token or that of an agent it comes from, its workspace's, or admin.
    """
    principal = await authenticate(control, authorization, "enrollment", "workspace", "admin")
    peer = await living_peer(control, principal, peer_id)
    async with control.database.read() as connection:
        chain = await ancestors(connection, [peer])
        below = await descendants(connection, [peer.id])
    answer = peer_answer(peer)
    answer["chain"] = [peer_reference(one) for one in reversed(chain)]
    answer["subAgents"] = [peer_reference(one) for one in below if one.parent_id == peer.id]
    return JSONResponse(answer)


@router.get(
    "/api/v1/peers",
    response_model=None,
    summary="List identities",
    responses={200: {"model": PeerPage}, **problems(401, 403, 422)},
)
async def list_peers(
    control: Control,
    workspace_id: Annotated[str | None, Query(alias="workspaceId", max_length=128)] = None,
    limit: Limit = 500,
    cursor: Cursor = None,
    authorization: Authorization = None,
) -> Response:
    """The living identities, oldest first. Bearer: a workspace token (its own), or admin."""
    principal = await authenticate(control, authorization, "workspace", "admin")
    workspace = workspace_scope(principal, workspace_id)
    items, after = await page_of_peers(control, workspace, limit, number_cursor(cursor))
    body: dict[str, Any] = {"items": [peer_answer(peer) for peer in items]}
    if after is not None:
        body["next"] = str(after)
    return JSONResponse(body)


def workspace_scope(principal: Principal, asked: str | None) -> str | None:
    """The workspace to look into; ``None`` is all of them, for an admin.

    Raises:
        ApiProblem: ``workspace_mismatch``.
    """
    if principal.kind == "admin":
        return asked
    own = principal.granted().workspace_id
    if asked not in (None, own):
        raise ApiProblem(
            "workspace_mismatch",
            "the token does not belong to this workspaceId; leave it out, "
            "or use a token of that workspace",
        )
    return own


async def living_peer(control: ControlPlane, principal: Principal, peer_id: str) -> PeerRecord:
    """A peer that exists for the caller and lives.

    Raises:
        ApiProblem: ``peer_not_found`` or ``peer_expired``.
    """
    async with control.database.read() as connection:
        peer = await peer_by_id(connection, peer_id)
        known = peer is not None and await identities.may_act_on(connection, principal, peer)
    if peer is None or not known or peer.state == "deleted":
        raise peer_not_found(peer_id)
    if not peer.alive(now_ms()):
        raise ApiProblem(
            "peer_expired", f"the identity {peer.id} expired at {rfc3339(peer.expires_at)}"
        )
    return peer


async def page_of_peers(
    control: ControlPlane, workspace: str | None, limit: int, after: int
) -> tuple[list[PeerRecord], int | None]:
    """A page of living peers in the order of their making, and where the next page starts."""
    peers = schema.peers.c
    query = (
        select(schema.peers)
        .where(peers.state == "active", peers.expires_at > now_ms(), peers.n > after)
        .order_by(peers.n)
        .limit(limit + 1)
    )
    if workspace is not None:
        query = query.where(peers.workspace_id == workspace)
    async with control.database.read() as connection:
        rows = (await connection.execute(query)).all()
    following = rows[limit - 1].n if len(rows) > limit else None
    return [PeerRecord.of(row) for row in rows[:limit]], following
