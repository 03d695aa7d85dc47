"""Enrollment, renewal and removal without a detour: they are nearly all there is to do under load.

Finding the route, resolving its dependencies and wrapping its answer costs several times what the
request itself does. So requests that are plainly one of the three are served here, by the functions
that the routes call as well. Whatever is in any way unusual, such as a body that does not fit its
model, goes to the routes, which know how to say what is wrong.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lattice_sdk.wire import EnrollRequest, RenewRequest
from lattice_server.access import Caller
from lattice_server.api import enrollment
from lattice_server.control import ControlPlane

PEERS, ENROLL, RENEW = "/api/v1/peers/", "/api/v1/agent-enroll", "/renew"
LONGEST_ID = 64

T = TypeVar("T", EnrollRequest, RenewRequest)


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.caller, self.is_json = _caller(scope)
        self._messages: list[Message] = []

    async def body(self) -> bytes | None:
        """The whole body, which the edge has read; ``None`` when the client has gone."""
        data = bytearray()
        while True:
            message = await self._receive()
            self._messages.append(message)
            if message["type"] != "http.request":
                return None
            data += message.get("body", b"")
            if not message.get("more_body", False):
                return bytes(data)

    async def receive(self) -> Message:
        """What has been received, again, and then what comes."""
        return self._messages.pop(0) if self._messages else await self._receive()

    async def abandoned(self) -> bool:
        """Whether the client has hung up. Does not wait: one step shows whether there is news."""
        waiting = self._receive()
        try:
            waiting.send(None)  # type: ignore[attr-defined]
        except StopIteration as news:
            return bool(news.value["type"] == "http.disconnect")
        waiting.close()  # type: ignore[attr-defined]
        return False

    async def answer(self, status: int, content: dict[str, Any] | None) -> None:
        """Send the answer, which has no content where it is ``None``."""
        headers, body = [], b""
        if content is not None:
            body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
            headers = [
                (b"content-length", str(len(body)).encode()),
                (b"content-type", b"application/json"),
                (b"cache-control", b"no-store"),
            ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class Direct:
    """Serves what is plainly one of the three requests, and hands the rest on.

    Args:
        control: the control plane.
        routes: the application with all routes.
    """

    def __init__(self, control: ControlPlane, routes: ASGIApp) -> None:
        self._control, self._routes = control, routes

    @staticmethod
    def takes(scope: Scope) -> bool:
        """Whether a request is one of the three, as far as its first line says."""
        return scope["type"] == "http" and _what(scope) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that :meth:`takes` has said yes to."""
        exchange = Exchange(scope, receive, send)
        match _what(scope):
            case "enroll", _:
                served = await self._enroll(exchange)
            case "renew", peer_id:
                served = await self._renew(exchange, peer_id)
            case "delete", peer_id:
                await enrollment.deletion(self._control, peer_id, exchange.caller)
                await exchange.answer(204, None)
                served = True
            case _:
                served = False
        if not served:
            await self._routes(scope, exchange.receive, send)

    async def _enroll(self, exchange: Exchange) -> bool:
        request = _model(EnrollRequest, exchange, await exchange.body())
        if request is None:
            return False
        answer = await enrollment.enrolled(
            self._control, request, exchange.caller, exchange.abandoned
        )
        await exchange.answer(201, answer)
        return True

    async def _renew(self, exchange: Exchange, peer_id: str) -> bool:
        body = await exchange.body()
        request = RenewRequest() if body == b"" else _model(RenewRequest, exchange, body)
        if request is None:
            return False
        await exchange.answer(
            200, await enrollment.renewed(self._control, peer_id, request, exchange.caller)
        )
        return True


def _what(scope: Scope) -> tuple[str, str] | None:
    """Which of the three, and of whom."""
    method, path = scope["method"], scope["path"]
    if method == "POST":
        if path == ENROLL:
            return "enroll", ""
        if path.startswith(PEERS) and path.endswith(RENEW):
            return _of("renew", path[len(PEERS) : -len(RENEW)])
    elif method == "DELETE" and path.startswith(PEERS):
        return _of("delete", path[len(PEERS) :])
    return None


def _of(what: str, peer_id: str) -> tuple[str, str] | None:
    return (what, peer_id) if 0 < len(peer_id) <= LONGEST_ID and "/" not in peer_id else None


def _caller(scope: Scope) -> tuple[Caller, bool]:
    """Who sends a request, and whether it is said to be JSON."""
    sent: list[bytes] = []
    kind = b""
    for name, value in scope["headers"]:
        if name == b"authorization":
            sent.append(value)
        elif name == b"content-type":
            kind = value
    client = scope.get("client")
    # Of two, a proxy may have looked at the other one.
    authorization = sent[0].decode("latin-1") if len(sent) == 1 else None
    return Caller(authorization, client[0] if client else ""), kind == b"application/json"


def _model(model: type[T], exchange: Exchange, body: bytes | None) -> T | None:
    """The body as its model; ``None`` when it is not plainly one."""
    if not body or not exchange.is_json:
        return None
    try:
        content = json.loads(body)
        return model.model_validate(content) if isinstance(content, dict) else None
    except (ValidationError, ValueError, RecursionError):
        return None
