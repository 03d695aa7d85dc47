"""Trusts: JWTs of which issuers enroll into which workspace. Bearer: an admin token."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from lattice_server import tokens, trusts
from lattice_server.access import authenticate
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

router = APIRouter(tags=["management"])


@router.post(
    "/api/v1/trusts",
    status_code=201,
    response_model=None,
    summary="Trust an issuer",
    responses={201: {"model": models.Trust}, **problems(400, 401, 403, 404, 413, 422)},
)
async def create_trust(
    control: Control, body: models.TrustBody, authorization: Authorization = None
) -> Response:
    """Let workloads enroll with a JWT of their own: a service account's token, a CI job's."""
    await authenticate(control, authorization, "admin")
    return JSONResponse(await trusts.create(control, body), status_code=201)


@router.get(
    "/api/v1/trusts",
    response_model=None,
    summary="List trusts",
    responses={200: {"model": models.TrustPage}, **problems(401, 403, 422)},
)
async def list_trusts(
    control: Control,
    workspace_id: Annotated[str | None, Query(alias="workspaceId", max_length=128)] = None,
    limit: Limit = 500,
    cursor: Cursor = None,
    authorization: Authorization = None,
) -> Response:
    """All trusts, oldest first."""
    await authenticate(control, authorization, "admin")
    found, after = await tokens.list_page(
        control, workspace_id, limit, number_cursor(cursor), trusts=True
    )
    return JSONResponse(page([trusts.answer(trust) for trust in found], after))


@router.delete(
    "/api/v1/trusts/{trust_id}",
    status_code=204,
    response_class=Response,
    summary="Trust an issuer no more",
    responses=problems(401, 403, 404),
)
async def revoke_trust(
    control: Control,
    trust_id: Annotated[str, Path(max_length=64)],
    agents: Annotated[
        bool, Query(description="End the identities that it enrolled, and their sub-agents")
    ] = False,
    authorization: Authorization = None,
) -> Response:
    """Take no more JWTs by this trust. Without ``agents`` identities live on."""
    await authenticate(control, authorization, "admin")
    await tokens.revoke_by_id(control, trust_id, agents=agents)
    return Response(status_code=204)
