"""What an identity reaches as things are now, for one that was enrolled a while ago."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from lattice_sdk.wire import Reach
from lattice_server.access import authenticate
from lattice_server.answers import reach_answer
from lattice_server.api.common import Authorization, Control, problems
from lattice_server.api.enrollment import PeerId, living_peer
from lattice_server.clock import now_ms
from lattice_server.presets import NOTHING
from lattice_server.store.queries import peer_objects, presets_of_workspace, services_of

router = APIRouter(tags=["enrollment"])


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
