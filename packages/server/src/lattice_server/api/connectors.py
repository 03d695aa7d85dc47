"""What connectors ask and tell: the routes they are to serve, and flows that they refused."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from sqlalchemy import select

from lattice_sdk.wire import Port, Protocol, RequestModel, WireModel
from lattice_server import names, workspace_policy
from lattice_server.access import Principal, authenticate, peer_not_found, same_secret
from lattice_server.api.common import Authorization, Control, problems
from lattice_server.clock import now_ms
from lattice_server.control import ControlPlane
from lattice_server.problems import ApiProblem, printable
from lattice_server.store import schema
from lattice_server.store.events import event
from lattice_server.store.queries import peer_by_id
from lattice_server.store.records import EGRESS, PeerRecord

router = APIRouter(tags=["enrollment"])

PeerId = Annotated[str, Path(max_length=64)]
Text = Annotated[str, Field(max_length=300)]
LONGEST_WAIT = 30.0  # seconds
REFUSALS_AT_ONCE = 100


class RoutesBody(RequestModel):
    """Body of ``POST /api/v1/peers/{id}/routes``.

    ``applied`` is the revision that the connector serves; ``wait`` is for how many seconds the
    answer may be kept back while there is no other.
    """

    applied: Annotated[int, Field(ge=0, le=2**62)] | None = None
    wait: Annotated[float, Field(ge=0, le=LONGEST_WAIT)] = 0.0


class RoutePort(WireModel):
    """A port of a host name."""

    port: Port
    protocol: Protocol


class NameRoute(WireModel):
    """A host name and the overlay address that leads to it."""

    address: str
    name: str
    ports: list[RoutePort]


class Routes(WireModel):
    """All that a connector has to serve."""

    revision: int
    names: list[NameRoute]
    private_targets: list[str]


class Refusal(RequestModel):
    """Flows that a connector did not carry."""

    source: Text
    name: Text
    port: Port
    protocol: Protocol
    reason: Text
    resolved: Text = ""
    times: Annotated[int, Field(ge=1, le=2**31)] = 1


class RefusalsBody(RequestModel):
    """Body of ``POST /api/v1/peers/{id}/refusals``."""

    refusals: Annotated[list[Refusal], Field(max_length=REFUSALS_AT_ONCE)]


@router.post(
    "/api/v1/peers/{peer_id}/routes",
    response_model=None,
    summary="Ask for what to serve",
    responses={200: {"model": Routes}, **problems(400, 401, 403, 404, 413, 422)},
)
async def routes(
    control: Control,
    peer_id: PeerId,
    body: RoutesBody | None = None,
    authorization: Authorization = None,
) -> Response:
    """The connector's whole state, as soon as it differs from ``applied``. Bearer: its token."""
    body = body or RoutesBody()
    principal = await authenticate(control, authorization, "enrollment")
    peer = await _connector(control, principal, peer_id)
    await control.connectors.news(
        peer.id, peer.token_hash, peer.workspace_id, body.applied, body.wait
    )
    # Read before the state: what changes meanwhile makes another revision.
    revision = control.connectors.revision(peer.workspace_id)
    async with control.database.read() as connection:
        policy = await workspace_policy.policy_of(connection, peer.workspace_id)
        served = await names.routes(connection, peer.workspace_id)
    return JSONResponse(
        {"revision": revision, "names": served, "privateTargets": policy["privateTargets"]}
    )


@router.post(
    "/api/v1/peers/{peer_id}/refusals",
    status_code=204,
    response_class=Response,
    summary="Report refused flows",
    responses=problems(400, 401, 403, 404, 413, 422),
)
async def refusals(
    control: Control, peer_id: PeerId, body: RefusalsBody, authorization: Authorization = None
) -> Response:
    """Put what a connector did not carry into the event log. Bearer: its token."""
    principal = await authenticate(control, authorization, "enrollment")
    peer = await _connector(control, principal, peer_id)
    peers = schema.peers.c
    sources = {one.source for one in body.refusals}
    async with control.database.write() as tx:
        rows = await tx.connection.execute(
            select(peers.address, peers.id, peers.name).where(
                peers.workspace_id == peer.workspace_id,
                peers.state == "active",
                peers.address.in_(sources),
            )
        )
        agents = {row.address: row for row in rows}
        await control.events.append(
            tx, [_event(peer, one, agents.get(one.source)) for one in body.refusals]
        )
    return Response(status_code=204)


async def _connector(control: ControlPlane, principal: Principal, peer_id: str) -> PeerRecord:
    """The egress connector whose token this is.

    Raises:
        ApiProblem: ``peer_not_found``, or ``forbidden`` for an identity of another kind.
    """
    own = principal.peer
    if own is None or own.id != peer_id:
        raise peer_not_found(peer_id)
    async with control.database.read() as connection:
        peer = await peer_by_id(connection, peer_id)
    if peer is None or not same_secret(peer.token_hash, own.token_hash) or not peer.alive(now_ms()):
        raise peer_not_found(peer_id)
    if peer.kind != "service" or peer.agent_type != EGRESS:
        raise ApiProblem("forbidden", f"the peer {peer_id} is no egress connector")
    return peer


def _event(connector: PeerRecord, refusal: Refusal, agent: Any) -> dict[str, Any]:
    return event(
        "egress",
        now_ms(),
        workspace=connector.workspace_id,
        peer_id=agent.id if agent else None,
        name=agent.name if agent else None,
        connector=connector.id,
        source=printable(refusal.source),
        destination=printable(refusal.name),
        protocol=refusal.protocol,
        port=refusal.port,
        refused=printable(refusal.reason),
        resolved=printable(refusal.resolved),
        times=refusal.times,
    )
