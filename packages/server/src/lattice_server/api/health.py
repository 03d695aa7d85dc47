"""Is it alive, is it ready, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sqlalchemy import func, select, text

from lattice_server.api.common import Control
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


@router.get("/metrics", response_class=Response, summary="Prometheus metrics")
async def metrics(control: Control) -> Response:
    """The figures in Prometheus' text format."""
    peers = schema.peers.c
    async with control.database.read() as connection:
        rows = await connection.execute(
            select(peers.workspace_id, peers.preset, func.count())
            .where(peers.state == "active", peers.expires_at > now_ms())
            .group_by(peers.workspace_id, peers.preset)
        )
        counts = rows.all()
    control.metrics.peers.clear()
    for workspace, preset, count in counts:
        control.metrics.peers.labels(workspace, preset).set(count)
    control.metrics.addresses_free.set(len(control.addresses))
    return Response(control.metrics.exposition(), media_type="text/plain; version=0.0.4")
