"""Connections as they come in: how many, from whom, and how long they may take.

uvicorn's HTTP/1.1 on h11, which is strict about what a request is, with deadlines: a client that
dribbles its request, or does not read its answer, is cut off instead of holding a place.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import get_remote_addr

from lattice_server.access import within_networks
from lattice_server.limits import source_key

HEADER_SECONDS = 10.0  # from the first byte of a request, or from the connection, to its headers
REQUEST_SECONDS = 45.0  # to its end; the application waits for 30 s and answers
UNREAD_SECONDS = 30.0  # with an answer that is not read
CLOSE_SECONDS = 5.0  # for a closed connection to get rid of what was written
MAX_HEADER_BYTES: Final = 32 * 1024
HANDSHAKE_SECONDS = 10.0  # of TLS


class Gate:
    """Counts open connections.

    Args:
        total: how many in all.
        per_source: how many of one source.
        exempt: networks without a limit of their own, such as a proxy's.
    """

    def __init__(self, total: int, per_source: int, exempt: Iterable[str] = ()) -> None:
        self._total, self._per_source, self._exempt = total, per_source, list(exempt)
        self._open: Counter[str] = Counter()
        self._count = 0

    def enter(self, address: str) -> bool:
        """Take a place; whether there is one."""
        source = source_key(address)
        if self._count >= self._total:
            return False
        crowded = self._open.get(source, 0) >= self._per_source
        if crowded and not within_networks(address, self._exempt):
            return False
        self._open[source] += 1
        self._count += 1
        return True

    def leave(self, address: str) -> None:
        """Give the place back."""
        source = source_key(address)
        self._count -= 1
        self._open[source] -= 1
        if not self._open[source]:
            del self._open[source]


class GuardedProtocol(H11Protocol):
    """One connection. To be subclassed with a gate: :func:`guarded`."""

    gate: Gate
    refused: Callable[[], None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or cut it off where there is no place."""
        remote = get_remote_addr(transport)
        self._address = remote[0] if remote else ""
        self._request: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._admitted = self.gate.enter(self._address)
        if not self._admitted:
            type(self).refused()
            transport.abort()
            return
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if not self._admitted:
            return
        if self._request is None:
            self._expect_request()
        super().data_received(data)
        self._look_at_request()

    def eof_received(self) -> None:
        """The client will say no more."""
        if self._admitted:
            super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        if not self._admitted:
            return
        self._cancel()
        self.gate.leave(self._address)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read."""
        self._unread = self._unread or self.loop.call_later(UNREAD_SECONDS, self._cut_off)
        super().pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def on_response_complete(self) -> None:
        """What the client still has to say of this request is bounded, too."""
        super().on_response_complete()
        if self._request is None and self.conn.trailing_data[0]:
            self._expect_request()  # the beginning of the next one came with this one
        self._look_at_request()
        if self.transport.is_closing():
            # Closing waits until everything is written, which is for the client to decide.
            self.loop.call_later(CLOSE_SECONDS, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand it over to the WebSocket's protocol, and keep its place until that is over."""
        self._cancel()
        super().handle_websocket_upgrade(event)
        protocol: Any = self.transport.get_protocol()
        if protocol is self:
            return
        lost = protocol.connection_lost

        def leave(exc: Exception | None) -> None:
            self.gate.leave(self._address)
            lost(exc)

        protocol.connection_lost = leave

    def _expect_request(self) -> None:
        self._request = self.loop.call_later(HEADER_SECONDS, self._headers_are_due)

    def _headers_are_due(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self._cut_off()
            return
        left = REQUEST_SECONDS - HEADER_SECONDS
        self._request = self.loop.call_later(left, self._cut_off)

    def _look_at_request(self) -> None:
        """Expect nothing more once a request is whole and the next has not begun."""
        if self._request is None:
            return
        whole = self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)
        between = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if whole or (between and self.cycle is not None):
            self._request.cancel()
            self._request = None

    def _cut_off(self) -> None:
        self.transport.abort()

    def _cancel(self) -> None:
        for timer in (self._request, self._unread):
            if timer is not None:
                timer.cancel()
        self._request = self._unread = None


def guarded(gate: Gate, refused: Callable[[], None]) -> type[GuardedProtocol]:
    """The protocol of connections that go through a gate; ``refused`` is told of the others."""
    members = {"gate": gate, "refused": staticmethod(refused)}
    return type("GatedProtocol", (GuardedProtocol,), members)


class ServingLoop(asyncio.SelectorEventLoop):
    """An event loop whose TLS servers do not wait a minute for a handshake."""

    async def create_server(self, *args: Any, **kwargs: Any) -> Any:
        """As its parent's, with a deadline for handshakes."""
        if kwargs.get("ssl") is not None:
            kwargs.setdefault("ssl_handshake_timeout", HANDSHAKE_SECONDS)
        return await super().create_server(*args, **kwargs)


def allow_files(wanted: int) -> int:
    """Have this process be allowed so many open files, or as many as it may; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return wanted if soft == resource.RLIM_INFINITY else soft
