"""What the routes share: the control plane of a request, and how problems are documented."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query, Request
from starlette.requests import HTTPConnection

from lattice_sdk.wire import Problem
from lattice_server.access import Caller
from lattice_server.control import ControlPlane
from lattice_server.problems import ApiProblem

Limit = Annotated[int, Query(ge=1, le=1000, description="Items on a page")]
Cursor = Annotated[
    str | None, Query(max_length=300, description="`next` of the page before this one")
]


async def control_of(request: Request) -> ControlPlane:
    """The control plane that serves this request."""
    control: ControlPlane = request.app.state.control
    return control


async def caller_of(connection: HTTPConnection) -> Caller:
    """Who sends this request or opens this WebSocket."""
    client = connection.client
    sent = connection.headers.getlist("authorization")
    # Of two, a proxy may have looked at the other one.
    return Caller(sent[0] if len(sent) == 1 else None, client.host if client else "")


# With a default of None, so that it may stand last in a signature; it is always there.
Authorization = Annotated[Caller | None, Depends(caller_of)]
Control = Annotated[ControlPlane, Depends(control_of)]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of error answers."""
    return {
        status: {
            "description": "Problem",
            "content": {"application/problem+json": {"schema": _PROBLEM}},
        }
        for status in sorted({*statuses, 422, 500})
    }


_PROBLEM = {"$ref": "#/components/schemas/Problem"}
PROBLEM_SCHEMA = Problem.model_json_schema(by_alias=True)


def page(items: list[dict[str, Any]], after: int | None) -> dict[str, Any]:
    """A page, with the cursor of the next one if there is more."""
    return {"items": items} | ({} if after is None else {"next": str(after)})


def number_cursor(cursor: str | None) -> int:
    """The row number in a cursor; zero without one.

    Raises:
        ApiProblem: ``invalid_request``.
    """
    if cursor is None:
        return 0
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise ApiProblem(
            "invalid_request",
            "the cursor is none of this server's; start again without one",
            errors=[{"field": "cursor", "message": "not a cursor"}],
        )
    return int(cursor)
