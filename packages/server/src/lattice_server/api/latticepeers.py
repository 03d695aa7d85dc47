"""Peers as Kubernetes-style resources: ``LatticePeer`` of ``alattice.io/v1alpha1``, to read."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from lattice_server.access import authenticate, peer_not_found
from lattice_server.answers import lattice_peer
from lattice_server.api.common import Authorization, Control, Limit, number_cursor, problems
from lattice_server.api.enrollment import (
    PeerId,
    living_peer,
    page_of_peers,
    workspace_scope,
)

router = APIRouter(tags=["LatticePeer"])

_PREFIX = "/apis/alattice.io/v1alpha1/namespaces/{workspace}/latticepeers"
Namespace = Annotated[str, Path(max_length=128)]


@router.get(
    _PREFIX,
    response_model=None,
    summary="List LatticePeers",
    responses=problems(401, 403, 422),
)
async def list_lattice_peers(
    control: Control,
    workspace: Namespace,
    limit: Limit = 500,
    resume: Annotated[str | None, Query(alias="continue", max_length=300)] = None,
    authorization: Authorization = None,
) -> Response:
    """The living peers of a workspace. Bearer: its workspace token, or admin."""
    principal = await authenticate(control, authorization, "workspace", "admin")
    scope = workspace_scope(principal, workspace)
    items, after = await page_of_peers(control, scope, limit, number_cursor(resume))
    metadata: dict[str, Any] = {"resourceVersion": str(control.hub.revision)}
    if after is not None:
        metadata["continue"] = str(after)
    return JSONResponse(
        {
            "apiVersion": "alattice.io/v1alpha1",
            "kind": "LatticePeerList",
            "metadata": metadata,
            "items": [lattice_peer(peer) for peer in items],
        }
    )


@router.get(
    _PREFIX + "/{peer_id}",
    response_model=None,
    summary="Look at a LatticePeer",
    responses=problems(401, 403, 404, 410),
)
async def get_lattice_peer(
    control: Control, workspace: Namespace, peer_id: PeerId, authorization: Authorization = None
) -> Response:
    """One living peer. Bearer: its enrollment token, its workspace's token, or admin."""
    principal = await authenticate(control, authorization, "enrollment", "workspace", "admin")
    peer = await living_peer(control, principal, peer_id)
    if peer.workspace_id != workspace:
        raise peer_not_found(peer_id)
    return JSONResponse(lattice_peer(peer))
