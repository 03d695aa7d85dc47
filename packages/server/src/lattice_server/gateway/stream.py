"""The WebSocket to the control plane: connecting, saying hello, messages both ways, backing off."""

from __future__ import annotations

import json
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode

from lattice_server.gateway.desired import BadMessageError
from lattice_server.gateway.settings import GatewayError, GatewaySettings

FIRST_DELAY, LONGEST_DELAY = 0.5, 15.0  # seconds
MAX_MESSAGE = 64 << 20  # bytes; a chunk of 1000 peers with 100 grants each is about 7 MB
AUTH_STATUS = frozenset({401, 403})
# Close codes: 1008 is a policy violation (RFC 6455 section 7.4.1), 44xx the control plane's own.
AUTH_CLOSE = frozenset({1008, 4401, 4403})
BAD_MESSAGE, REPLACED = 4400, 4409


class RefusedError(GatewayError):
    """The control plane does not take the token or what the gateway says of itself."""


class ReplacedError(GatewayError):
    """Another daemon has connected under this gateway's name."""


class Backoff:
    """Delays that double up to 15 s; the first is at most 0.5 s. Half of each is random."""

    def __init__(self) -> None:
        self._delay = FIRST_DELAY

    def reset(self) -> None:
        """Begin anew after a success."""
        self._delay = FIRST_DELAY

    def be_patient(self) -> None:
        """Go to the longest delay: trying at once would do harm."""
        self._delay = LONGEST_DELAY

    def next(self) -> float:
        """Seconds to wait before the next attempt."""
        delay, self._delay = self._delay, min(self._delay * 2, LONGEST_DELAY)
        return delay * (0.5 + random.random() / 2)  # noqa: S311 - spreads load, no secret


class ControlStream:
    """One connection that has said hello."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            BadMessageError: it is not a JSON object.
            ConnectionClosed: the stream is over.
        """
        data = await self._socket.recv()
        try:
            message = json.loads(data)
        except ValueError as error:
            raise BadMessageError(f"a message is not JSON: {error}") from error
        if not isinstance(message, dict):
            raise BadMessageError("a message is not a JSON object")
        return message

    async def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        await self._socket.send(json.dumps(message, separators=(",", ":")))

    async def close(self) -> None:
        """End the connection."""
        await self._socket.close()


def tls_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """How the control plane is verified; ``None`` for plain HTTP.

    Raises:
        GatewayError: the CA file cannot be used.
    """
    if not settings.stream_url.startswith("wss:"):
        return None
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise GatewayError(
            f"{settings.ca_file} cannot be used as certificate authorities ({error}): "
            "it must be a readable PEM file with the certificate that signed the server's"
        ) from error


def _hello(settings: GatewaySettings, public_key: str, listen_port: int) -> dict[str, Any]:
    return {
        "type": "hello",
        "gateway": settings.name,
        "publicKey": public_key,
        "endpoint": settings.endpoint_at(listen_port),
        "address": settings.overlay_ip,
        "overlay": settings.overlay,
        "version": version("lattice-server"),
    }


@asynccontextmanager
async def open_stream(
    settings: GatewaySettings, tls: ssl.SSLContext | None, public_key: str, listen_port: int
) -> AsyncIterator[ControlStream]:
    """Connect, authenticate and say hello.

    Raises:
        RefusedError: the control plane does not take the token, now or later on.
        ReplacedError: another daemon took this gateway's place.
        OSError, TimeoutError, WebSocketException: it cannot be reached.
    """
    connection = connect(
        settings.stream_url,
        additional_headers={"Authorization": f"Bearer {settings.token()}"},
        ssl=tls,
        proxy=None if settings.on_loopback else True,
        compression=None,
        max_size=MAX_MESSAGE,
        open_timeout=10,
        # A dead link must not look like a quiet control plane for long.
        ping_interval=10,
        ping_timeout=10,
        close_timeout=1,
    )
    try:
        async with connection as socket:
            stream = ControlStream(socket)
            await stream.send(_hello(settings, public_key, listen_port))
            try:
                yield stream
            finally:
                await socket.close(CloseCode.GOING_AWAY)
    except InvalidStatus as error:
        status = error.response.status_code
        if status in AUTH_STATUS:
            raise RefusedError(_refusal(settings, f"HTTP {status}", error.response.body)) from None
        raise
    except ConnectionClosed as error:
        code, reason = (error.rcvd.code, error.rcvd.reason) if error.rcvd else (0, "")
        if code in AUTH_CLOSE:
            raise RefusedError(_refusal(settings, reason or f"close code {code}", None)) from None
        if code == BAD_MESSAGE:
            raise RefusedError(f"{settings.server} refuses this gateway: {reason}") from None
        if code == REPLACED:
            raise ReplacedError(
                f"another gateway daemon connects to {settings.server} as {settings.name!r}: "
                "stop one of the two"
            ) from None
        raise


def _refusal(settings: GatewaySettings, what: str, body: bytes | bytearray | None) -> str:
    try:
        problem = json.loads(body) if body else {}
        detail = problem.get("detail") or ""
    except (ValueError, AttributeError):
        detail = ""
    return (
        f"{settings.server} refuses this gateway's token ({what}{': ' if detail else ''}{detail}): "
        f"put a token of kind gateway into {settings.token_file} "
        "(`lattice tokens create --kind gateway`)"
    )
