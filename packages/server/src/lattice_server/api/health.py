"""Is it alive, is it ready, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sqlalchemy import func, select, text

from lattice_server.access import authenticate
from lattice_server.api.common import Authorization, Control, problems
from lattice_server.clock import now_ms
from lattice_server.store import schema

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="The process serves")
async def healthz() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=None,
    summary="Enrollments can succeed",
    responses={503: {"description": "Something is missing; the body says what"}},
)
async def readyz(control: Control) -> Response:
    """200 when the database answers and a gateway is connected and in step, else 503."""
    stream = control.hub.stream
    checks = {"database": "ok", "gateway": "ok" if stream and stream.synced else "absent"}
    try:
        async with control.database.read() as connection:
            await connection.execute(text("SELECT 1"))
    except Exception:
        checks["database"] = "failing"
    ready = set(checks.values()) == {"ok"}
    return JSONResponse(
        {"status": "ok" if ready else "unavailable", **checks}, status_code=200 if ready else 503
    )


@router.get(
    "/metrics",
    response_class=Response,
    summary="Prometheus metrics",
    responses=problems(401, 403),
)
async def metrics(control: Control, authorization: Authorization = None) -> Response:
    """The figures in Prometheus' text format.

    Bearer: observer or admin, who see them by workspace; without one they are those of all.
    """
    peers = schema.peers.c
    named = authorization is not None and authorization.authorization is not None
    if named:
        await authenticate(control, authorization, "observer", "admin")
    async with control.database.read() as connection:
        rows = await connection.execute(
            select(peers.workspace_id, peers.preset, func.count())
            .where(peers.state == "active", peers.expires_at > now_ms())
            .group_by(peers.workspace_id, peers.preset)
        )
        counts = [tuple(row) for row in rows]
    control.metrics.peers.clear()
    for workspace, preset, count in counts:
        control.metrics.peers.labels(workspace if named else "", preset).inc(count)
    control.metrics.addresses_free.set(len(control.addresses))
    return Response(control.metrics.exposition(), media_type="text/plain; version=0.0.4")
