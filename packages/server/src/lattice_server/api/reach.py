"""What an identity reaches as things are now, for one that was enrolled a while ago."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from lattice_sdk.wire import Reach, RequestModel, ServicePort, WireModel
from lattice_server import patterns
from lattice_server.access import authenticate
from lattice_server.answers import reach_answer
from lattice_server.api.common import Authorization, Control, problems
from lattice_server.api.enrollment import PeerId, living_peer
from lattice_server.clock import now_ms
from lattice_server.presets import NOTHING
from lattice_server.store.queries import peer_objects, presets_of_workspace, services_of

router = APIRouter(tags=["enrollment"])


class NameBody(RequestModel):
    """Body of ``POST /api/v1/peers/{id}/names``."""

    name: Annotated[str, Field(min_length=1, max_length=255)]


class ServedName(WireModel):
    """A host name and the overlay address that leads to it."""

    name: str
    address: str
    ports: list[ServicePort]


@router.post(
    "/api/v1/peers/{peer_id}/names",
    response_model=None,
    summary="Have a name of a pattern served",
    responses={200: {"model": ServedName}, **problems(400, 401, 403, 404, 410, 413, 422, 503)},
)
async def serve_name(
    control: Control, peer_id: PeerId, body: NameBody, authorization: Authorization = None
) -> Response:
    """Give a host name that a pattern of the allow list covers its address. Bearer: its token."""
    principal = await authenticate(control, authorization, "enrollment")
    return JSONResponse(await patterns.serve_name(control, peer_id, principal, body.name))


@router.get(
    "/api/v1/peers/{peer_id}/services",
    response_model=None,
    summary="What an identity reaches now",
    responses={200: {"model": Reach}, **problems(401, 403, 404, 410)},
)
async def get_reach(
    control: Control, peer_id: PeerId, authorization: Authorization = None
) -> Response:
    """The services of the enrollment's answer as they are now: policy may have changed since."""
    principal = await authenticate(control, authorization, "enrollment", "workspace", "admin")
    peer = await living_peer(control, principal, peer_id)
    async with control.database.read() as connection:
        services = await services_of(connection, peer.workspace_id)
        presets = await presets_of_workspace(connection, peer.workspace_id)
        [own] = await peer_objects(
            connection, peer.workspace_id, [peer], now_ms(), services, presets
        )
    ingress = sorted(presets.get(peer.preset, NOTHING).ingress)
    return JSONResponse(reach_answer(peer, own.grants, services, ingress))
