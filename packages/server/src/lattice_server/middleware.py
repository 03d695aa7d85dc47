"""The edge of the HTTP face, as pure ASGI: body limit, time header, access log, last resort."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lattice_server.clock import now_ms, rfc3339
from lattice_server.holding import Held, Holding, gave_way
from lattice_server.limits import source_key
from lattice_server.metrics import Metrics
from lattice_server.problems import ApiProblem, printable

log = logging.getLogger("lattice.access")
errors = logging.getLogger("lattice.errors")

MAX_BODY_BYTES = 1024 * 1024
BODY_SECONDS = 30.0
PASSED = "lattice.edge"  # in the scope of a request that has been through it


class Edge:
    """Wraps the whole application.

    Reads a request's body before the application sees it, at most :data:`MAX_BODY_BYTES`; adds
    ``Lattice-Time`` (the server's time, RFC 3339 with milliseconds) to every answer; writes a
    line for each request, without headers and query; answers what nobody caught with a 500 problem.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, holding: Holding) -> None:
        self._app, self._metrics, self._holding = app, metrics, holding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or PASSED in scope:
            await self._app(scope, receive, send)
            return
        scope[PASSED] = True
        started = time.perf_counter()
        status = 0

        async def timed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"lattice-time", rfc3339(now_ms()).encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        client = scope.get("client") or ("-", 0)
        held = self._holding.open(source_key(client[0]))
        try:
            await self._app(scope, await _with_body(scope, receive, held), timed_send)
        except ApiProblem as problem:
            self._metrics.refusals.labels(problem.code).inc()
            await problem.response()(scope, receive, timed_send)
        except Exception:
            errors.exception("%s %s failed", scope["method"], printable(scope["path"], 200))
            if status:
                raise
            self._metrics.refusals.labels("internal_error").inc()
            failure = ApiProblem(
                "internal_error", "the server failed; its log says why. Try again later"
            )
            await failure.response()(scope, receive, timed_send)
        finally:
            held.release()
            log.info(
                "%s %s %s %s %.1f ms",
                client[0],
                scope["method"],
                # repr: a path may hold a line break
                ascii(printable(scope["path"], 200))[1:-1],
                status,
                (time.perf_counter() - started) * 1000,
            )


async def _with_body(scope: Scope, receive: Receive, held: Held) -> Receive:
    """Read the body, and give the application a ``receive`` that hands it out.

    Raises:
        ApiProblem: ``payload_too_large`` before more than the limit is kept,
            ``request_timeout`` or ``overloaded``.
    """
    length = chunked = None
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = int(value) if value.isdigit() else 0
        elif name == b"transfer-encoding":
            chunked = value
    if not length and chunked is None:
        return receive
    if length and length > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS) as arrival:
            held.arrives(arrival)
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                held.add(len(message.get("body", b"")))
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        if held.gave_way:
            raise gave_way() from None
        raise ApiProblem(
            "request_timeout", f"the body did not arrive within {BODY_SECONDS:g} s; send it again"
        ) from None
    finally:
        held.arrived()
    whole: Message = {"type": "http.request", "body": bytes(body), "more_body": False}
    handed_out = False

    async def replay() -> Message:
        nonlocal handed_out
        if handed_out:
            return await receive()
        handed_out = True
        return whole

    return replay


def _too_large() -> ApiProblem:
    return ApiProblem(
        "payload_too_large", f"a body has at most {MAX_BODY_BYTES} bytes, and this one has more"
    )
