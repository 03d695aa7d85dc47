"""An HTTP server as small as a kubelet's probe needs: a status and a JSON document, then closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from lattice_sdk.errors import ConfigurationError

Answer = tuple[int, dict[str, Any]]

PATIENCE = 5.0  # seconds for a request to come
HEAD_LIMIT = 16 * 1024


async def serve(
    listener: socket.socket, answer: Callable[[str, str], Awaitable[Answer]]
) -> asyncio.Server:
    """Answer each request on ``listener`` with what ``answer(method, target)`` returns."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            method, target, *_ = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
            writer.write(_render(*await answer(method, target)))
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    return await asyncio.start_server(handle, sock=listener, limit=HEAD_LIMIT)


def _render(status: int, document: dict[str, Any]) -> bytes:
    body = json.dumps(document).encode() + b"\n"
    kind = "application/problem+json" if status >= HTTPStatus.BAD_REQUEST else "application/json"
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def everywhere(port: int) -> socket.socket:
    """A socket that listens on all addresses: probes come to the pod's, of either family.

    Raises:
        ConfigurationError: something else listens there.
    """
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be turned off in the pod
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    try:
        return socket.create_server(("0.0.0.0", port))  # noqa: S104 - the kubelet is elsewhere
    except OSError as error:
        raise ConfigurationError(
            f"the sidecar cannot listen on port {port} for the kubelet's probes: {error.strerror}",
            hint="Give it another one: `lattice k8s inject --health-port`",
        ) from None


def loopback(port: int) -> socket.socket:
    """A socket that listens on loopback."""
    return socket.create_server(("127.0.0.1", port))
