"""The event log over HTTP: pages, or a stream of JSON lines that goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse

from lattice_server.access import authenticate
from lattice_server.api.common import Authorization, Control, Limit, problems
from lattice_server.api.models import EventPage
from lattice_server.control import ControlPlane
from lattice_server.store.events import EventFilter, read_events

router = APIRouter(tags=["management"])

LINES_AT_ONCE = 500
EventType = Literal[
    "enrolled",
    "delegated",
    "renewed",
    "revoked",
    "expired",
    "denied",
    "token.created",
    "token.rotated",
    "token.revoked",
    "trust.created",
    "trust.revoked",
    "service.created",
    "service.changed",
    "service.removed",
    "policy.changed",
    "egress",
]


@router.get(
    "/api/v1/events",
    response_model=None,
    summary="What happened",
    responses={200: {"model": EventPage}, **problems(401, 403, 422)},
)
async def list_events(
    control: Control,
    after: Annotated[int, Query(ge=0, le=2**62, description="Events with a greater seq")] = 0,
    follow: Annotated[bool, Query(description="JSON lines, and go on as things happen")] = False,
    limit: Limit = 500,
    workspace_id: Annotated[str | None, Query(alias="workspaceId", max_length=128)] = None,
    event_type: Annotated[EventType | None, Query(alias="type")] = None,
    peer_id: Annotated[str | None, Query(alias="peerId", max_length=128)] = None,
    authorization: Authorization = None,
) -> Response:
    """Events, oldest first: a page, or with ``follow`` a stream. Bearer: admin."""
    await authenticate(control, authorization, "admin")
    wanted = EventFilter(workspace_id, event_type, peer_id)
    if follow:
        return StreamingResponse(_lines(control, after, wanted), media_type="application/x-ndjson")
    async with control.database.read() as connection:
        events = await read_events(connection, after, limit + 1, wanted)
    page: dict[str, object] = {"items": events[:limit]}
    if len(events) > limit:
        page["next"] = events[limit - 1]["seq"]
    return JSONResponse(page)


async def _lines(control: ControlPlane, after: int, wanted: EventFilter) -> AsyncIterator[str]:
    while not control.closing.is_set():
        news = control.events.news()
        async with control.database.read() as connection:
            events = await read_events(connection, after, LINES_AT_ONCE, wanted)
        if events:
            after = events[-1]["seq"]
            yield "".join(json.dumps(item, separators=(",", ":")) + "\n" for item in events)
        else:
            await news.wait()
