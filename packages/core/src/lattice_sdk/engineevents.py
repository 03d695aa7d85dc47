"""What an engine tells of its tunnels by itself, by one connection that costs nothing meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lattice_engine import EngineProcess

log = logging.getLogger("lattice.engine")

Listener = Callable[[dict[str, Any]], None]
AGAIN = 1.0  # seconds until a connection that broke off is made again


class EngineEvents:
    """Who wants to hear of which tunnel. Lives in the background loop."""

    def __init__(self) -> None:
        self._listeners: set[tuple[str, Listener]] = set()

    def add(self, tunnel: str, listener: Listener) -> None:
        """Have ``listener`` called, in the loop, with each event of the tunnel."""
        self._listeners.add((tunnel, listener))

    def remove(self, tunnel: str, listener: Listener) -> None:
        """Undo :meth:`add`."""
        self._listeners.discard((tunnel, listener))

    async def hear(self, process: EngineProcess) -> None:
        """Pass on what the engine tells, until it ends."""
        while process.alive():
            try:
                async for event in _events(str(process.control)):
                    for tunnel, listener in tuple(self._listeners):
                        if tunnel == event.get("id"):
                            listener(event)
            except (OSError, EOFError, ValueError) as error:
                log.debug("the engine's events are not heard: %s", error)
            await asyncio.sleep(AGAIN)


async def _events(control: str) -> AsyncIterator[dict[str, Any]]:
    """``GET /v1/events``; in HTTP/1.0, whose answer has no chunks."""
    reader, writer = await asyncio.open_unix_connection(control)
    try:
        writer.write(b"GET /v1/events HTTP/1.0\r\nHost: engine\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        if head.split(b" ", 2)[1] != b"200":
            raise ValueError(head.partition(b"\r\n")[0].decode(errors="replace"))
        while line := await reader.readline():
            yield json.loads(line)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
