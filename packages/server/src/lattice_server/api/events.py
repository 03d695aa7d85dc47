"""Evidence over HTTP: the event log in pages or as it goes on, and refused flows added up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse

from lattice_server.access import Caller, authenticate
from lattice_server.api.common import (
    Authorization,
    Control,
    Cursor,
    Limit,
    number_cursor,
    page,
    problems,
)
from lattice_server.api.models import DenialPage, EventPage
from lattice_server.control import ControlPlane
from lattice_server.denials import read_sums
from lattice_server.problems import ApiProblem
from lattice_server.store.events import EventFilter, EventType, read_events

router = APIRouter(tags=["management"])

EVENTS_AT_ONCE = 500
# A quiet stream says that it is there, so that proxies keep it and a dead client is noticed.
QUIET_SECONDS = 15.0
CHECK_SECONDS = 1.0  # between looks whether the stream's token still holds, while things happen
STREAM = "text/event-stream"


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
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
    last_event_id: Annotated[
        str | None, Header(description="Where an event stream was left, instead of after")
    ] = None,
    authorization: Authorization = None,
) -> Response:
    """Events, oldest first: a page, or with ``follow`` a stream. Bearer: observer or admin.

    With ``Accept: text/event-stream`` the stream is of server-sent events, which clients take up
    again by themselves where it was left.
    """
    await authenticate(control, authorization, "observer", "admin")
    wanted = EventFilter(workspace_id, event_type, peer_id)
    if STREAM in (accept or ""):
        after = _last_seen(last_event_id, after)
        events = _follow(control, authorization, after, wanted)
        return StreamingResponse(
            _written(events, _as_server_sent, ":\n\n"),
            media_type=STREAM,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    if follow:
        events = _follow(control, authorization, after, wanted)
        return StreamingResponse(
            _written(events, _as_line, "\n"), media_type="application/x-ndjson"
        )
    async with control.database.read() as connection:
        found = await read_events(connection, after, limit + 1, wanted)
    answer: dict[str, object] = {"items": found[:limit]}
    if len(found) > limit:
        answer["next"] = found[limit - 1]["seq"]
    return JSONResponse(answer)


@router.get(
    "/api/v1/denials",
    response_model=None,
    summary="Refused flows, added up",
    responses={200: {"model": DenialPage}, **problems(401, 403, 422)},
)
async def list_denials(
    control: Control,
    workspace_id: Annotated[str | None, Query(alias="workspaceId", max_length=128)] = None,
    peer_id: Annotated[str | None, Query(alias="peerId", max_length=128)] = None,
    limit: Limit = 500,
    cursor: Cursor = None,
    authorization: Authorization = None,
) -> Response:
    """Who was refused what, how often, first and last; also of peers that have ended.

    Bearer: observer or admin.
    """
    await authenticate(control, authorization, "observer", "admin")
    async with control.database.read() as connection:
        items, after = await read_sums(
            connection, workspace_id, peer_id, number_cursor(cursor), limit
        )
    return JSONResponse(page(items, after))


def _last_seen(last_event_id: str | None, after: int) -> int:
    if last_event_id is None:
        return after
    return max(after, number_cursor(last_event_id))


async def _follow(
    control: ControlPlane, caller: Caller | None, after: int, wanted: EventFilter
) -> AsyncIterator[list[dict[str, Any]]]:
    """Batches of events as they happen; an empty one when nothing has for a while.

    It ends when the control plane does, or the caller's token.
    """
    clock = asyncio.get_running_loop().time
    checked = clock()
    while not control.closing.is_set():
        news = control.events.news()
        async with control.database.read() as connection:
            events = await read_events(connection, after, EVENTS_AT_ONCE, wanted)
        if events:
            after = events[-1]["seq"]
            yield events
        else:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    await news.wait()
            except TimeoutError:
                yield []
        if clock() - checked > CHECK_SECONDS:
            checked = clock()
            try:
                await authenticate(control, caller, "observer", "admin")
            except ApiProblem:
                return


async def _written(
    batches: AsyncIterator[list[dict[str, Any]]],
    write: Callable[[dict[str, Any]], str],
    quiet: str,
) -> AsyncIterator[str]:
    async for batch in batches:
        yield "".join(map(write, batch)) or quiet


def _as_line(item: dict[str, Any]) -> str:
    return json.dumps(item, separators=(",", ":")) + "\n"


def _as_server_sent(item: dict[str, Any]) -> str:
    # https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    return f"id: {item['seq']}\nevent: {item['type']}\ndata: {_as_line(item)}\n"
