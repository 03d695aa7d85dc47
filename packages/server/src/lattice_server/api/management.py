"""The management API: workspaces, tokens, tool services. Bearer: an admin token."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from lattice_sdk.wire import EnrollResponse
from lattice_server import connecting, management, services, tokens
from lattice_server.access import Caller, Principal, authenticate
from lattice_server.api import models
from lattice_server.api.common import (
    Authorization,
    Control,
    Cursor,
    Limit,
    number_cursor,
    page,
    problems,
)
from lattice_server.control import ControlPlane
from lattice_server.problems import ApiProblem
from lattice_server.terms import Connect

router = APIRouter(tags=["management"])

_NO_STORE = {"Cache-Control": "no-store"}
WorkspaceQuery = Annotated[str | None, Query(alias="workspaceId", max_length=128)]
TokenId = Annotated[str, Path(max_length=64)]
ServicePath = Annotated[str, Path(max_length=63)]


async def _admin(control: ControlPlane, authorization: Caller | None) -> Principal:
    return await authenticate(control, authorization, "admin")


@router.post(
    "/api/v1/workspaces",
    status_code=201,
    response_model=None,
    summary="Create a workspace",
    responses={201: {"model": models.Workspace}, **problems(400, 401, 403, 413, 422)},
)
async def create_workspace(
    control: Control, body: models.WorkspaceBody, authorization: Authorization = None
) -> Response:
    """Create a workspace; one that is there already is answered as it is."""
    await _admin(control, authorization)
    return JSONResponse(
        await management.create_workspace(control, body.workspace_id), status_code=201
    )


@router.get(
    "/api/v1/workspaces",
    response_model=None,
    summary="List workspaces",
    responses={200: {"model": models.WorkspacePage}, **problems(401, 403, 422)},
)
async def list_workspaces(
    control: Control,
    limit: Limit = 500,
    cursor: Cursor = None,
    authorization: Authorization = None,
) -> Response:
    """All workspaces, by name."""
    await _admin(control, authorization)
    return JSONResponse(await management.list_workspaces(control, limit, cursor or ""))


@router.post(
    "/api/v1/tokens",
    status_code=201,
    response_model=None,
    summary="Create a token",
    responses={201: {"model": models.Token}, **problems(400, 401, 403, 404, 413, 422)},
)
async def create_token(
    control: Control, body: models.TokenBody, authorization: Authorization = None
) -> Response:
    """Create a token. Its text is in this answer and never again."""
    await _admin(control, authorization)
    return JSONResponse(await tokens.create(control, body), status_code=201, headers=_NO_STORE)


@router.get(
    "/api/v1/tokens",
    response_model=None,
    summary="List tokens",
    responses={200: {"model": models.TokenPage}, **problems(401, 403, 422)},
)
async def list_tokens(
    control: Control,
    workspace_id: WorkspaceQuery = None,
    limit: Limit = 500,
    cursor: Cursor = None,
    authorization: Authorization = None,
) -> Response:
    """All tokens without their secrets, oldest first."""
    await _admin(control, authorization)
    found, after = await tokens.list_page(control, workspace_id, limit, number_cursor(cursor))
    return JSONResponse(page([tokens.answer(token) for token in found], after))


@router.delete(
    "/api/v1/tokens/{token_id}",
    status_code=204,
    response_class=Response,
    summary="Revoke a token",
    responses=problems(401, 403, 404),
)
async def revoke_token(
    control: Control,
    token_id: TokenId,
    agents: Annotated[
        bool, Query(description="End the identities that it enrolled, and their sub-agents")
    ] = False,
    authorization: Authorization = None,
) -> Response:
    """Revoke a token; also one that is revoked already. Without ``agents`` identities live on."""
    await _admin(control, authorization)
    await tokens.revoke_by_id(control, token_id, agents=agents)
    return Response(status_code=204)


@router.post(
    "/api/v1/tokens/{token_id}/rotate",
    response_model=None,
    summary="Rotate a token",
    responses={200: {"model": models.Token}, **problems(400, 401, 403, 404, 413, 422)},
)
async def rotate_token(
    control: Control,
    token_id: TokenId,
    body: models.RotateBody | None = None,
    authorization: Authorization = None,
) -> Response:
    """Give a token a new text, in this answer and never again. Its id and its limits stay."""
    await _admin(control, authorization)
    overlap = (body or models.RotateBody()).overlap
    return JSONResponse(await tokens.rotate(control, token_id, overlap), headers=_NO_STORE)


@router.post(
    "/api/v1/services",
    status_code=201,
    response_model=None,
    summary="Add a tool service",
    responses={
        201: {"model": models.ManagedService},
        **problems(400, 401, 403, 404, 409, 413, 422, 503),
    },
)
async def create_service(
    control: Control, body: models.ServiceBody, authorization: Authorization = None
) -> Response:
    """Add a tool service with an overlay address of its own; the same again changes nothing."""
    await _admin(control, authorization)
    return JSONResponse(await management.create_service(control, body), status_code=201)


@router.get(
    "/api/v1/services",
    response_model=None,
    summary="List tool services",
    responses={200: {"model": models.ServicePage}, **problems(401, 403, 422)},
)
async def list_services(
    control: Control,
    workspace_id: WorkspaceQuery = None,
    limit: Limit = 500,
    cursor: Cursor = None,
    authorization: Authorization = None,
) -> Response:
    """All tool services, by workspace and name."""
    await _admin(control, authorization)
    return JSONResponse(await management.list_services(control, workspace_id, limit, cursor))


@router.patch(
    "/api/v1/services/{name}",
    response_model=None,
    summary="Change a tool service",
    responses={
        200: {"model": models.ManagedService},
        **problems(400, 401, 403, 404, 409, 413, 422),
    },
)
async def change_service(
    control: Control,
    name: ServicePath,
    body: models.ServiceChange,
    workspace_id: WorkspaceQuery = None,
    authorization: Authorization = None,
) -> Response:
    """Change what a service offers and to whom. Running agents gain and lose it within a second."""
    await _admin(control, authorization)
    workspace = workspace_id or await management.workspace_of_service(control, name)
    return JSONResponse(await services.change_service(control, workspace, name, body))


@router.delete(
    "/api/v1/services/{name}",
    status_code=204,
    response_class=Response,
    summary="Remove a tool service",
    responses=problems(401, 403, 404, 422),
)
async def delete_service(
    control: Control,
    name: ServicePath,
    workspace_id: WorkspaceQuery = None,
    authorization: Authorization = None,
) -> Response:
    """Remove a service, its identity, its tokens and every grant to it."""
    await _admin(control, authorization)
    workspace = workspace_id or await management.workspace_of_service(control, name)
    await management.delete_service(control, workspace, name)
    return Response(status_code=204)


@router.post(
    "/api/v1/services/{name}/connect",
    status_code=201,
    response_model=None,
    tags=["enrollment"],
    summary="Connect a tool service",
    responses={201: {"model": EnrollResponse}, **problems(400, 401, 403, 404, 413, 422, 503)},
)
async def connect_service(
    control: Control,
    name: ServicePath,
    body: Connect | None = None,
    authorization: Authorization = None,
) -> Response:
    """Take the service's address. Bearer: the service's token, or admin.

    A later connector takes over; the earlier one's enrollment token is void from then on.
    """
    principal = await authenticate(control, authorization, "service", "admin")
    body = body or Connect()
    workspace = await _service_workspace(control, principal, name, body)
    async with control.lanes.enter(principal.granted().id):
        answer: dict[str, Any] = await connecting.connect_service(
            control, principal, workspace, name, body
        )
    return JSONResponse(answer, status_code=201, headers=_NO_STORE)


async def _service_workspace(
    control: ControlPlane, principal: Principal, name: str, body: Connect
) -> str:
    token = principal.granted()
    if principal.kind == "admin":
        return body.workspace_id or await management.workspace_of_service(control, name)
    if token.service != name:
        raise ApiProblem("forbidden", f"this token is for the service {token.service} alone")
    if body.workspace_id not in (None, token.workspace_id):
        raise ApiProblem("workspace_mismatch", "the token does not belong to this workspaceId")
    return token.workspace_id or ""
