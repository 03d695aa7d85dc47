"""The one engine of this process: started when a tunnel needs it, watched, ended with the last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from lattice_engine import EngineError, EngineMissing
from lattice_sdk.engineevents import EngineEvents
from lattice_sdk.errors import EngineFailed

if TYPE_CHECKING:
    from lattice_engine import EngineProcess

log = logging.getLogger("lattice.engine")

POLL = 0.5  # seconds between looks at the engine where the kernel does not tell of its end


class EngineHost:
    """Starts, watches and ends the engine. Lives in the background loop.

    Args:
        call: runs a blocking function in a thread.

    Attributes:
        events: of its tunnels.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call
        self._starting = asyncio.Lock()
        self._process: EngineProcess | None = None
        self.events = EngineEvents()
        self._watches: list[asyncio.Task[None]] = []
        self._on_death: set[Callable[[], None]] = set()
        self._given: EngineProcess | None = None
        self._sweeping: asyncio.Future[list[str]] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the engine; ``None`` when none runs."""
        return self._process.pid if self._process else None

    @property
    def directory(self) -> str:
        """The running engine's own directory, which it removes at its end.

        Raises:
            EngineFailed: none runs.
        """
        if self._process is None:
            raise EngineFailed("no engine runs", code="engine_closed")
        return str(self._process.control.parent)

    def give(self, process: EngineProcess) -> None:
        """Let an engine that was started already be the one. Before any is needed; any thread."""
        self._given = process

    async def process(self) -> EngineProcess:
        """The running engine; a new one when there is none or it died.

        Raises:
            EngineFailed: it cannot be started.
        """
        from lattice_sdk import runtime

        async with self._starting:
            if self._process is not None and self._process.alive():
                return self._process
            await self._end()
            # To its end also when cancelled: else an engine would run that nobody knows of.
            return await runtime.finish(self._start())

    async def _start(self) -> EngineProcess:
        from lattice_engine import EngineProcess

        process, self._given = self._given, None
        if process is None:
            try:
                process = await self._call(EngineProcess.start_netstack)
            except EngineError as error:
                raise engine_failed(error) from None
        self._sweeping = asyncio.ensure_future(self._call(EngineProcess.sweep))
        self._process = process
        self._watches = [
            asyncio.create_task(self._watched(process)),
            asyncio.create_task(self.events.hear(process)),
        ]
        log.debug("engine started, pid %d", process.pid)
        return process

    async def request(self, method: str, *args: Any, pid: int | None = None, **kwargs: Any) -> Any:
        """Call a method of the running engine's client.

        Args:
            method: of :class:`lattice_engine.EngineClient`.
            pid: ask this engine only, and start none if it has ended.
            args: for the method.
            kwargs: for the method.

        Raises:
            EngineError: as the engine answers; ``engine_closed`` when that engine has ended.
        """
        process = self._process if pid is not None else await self.process()
        if process is None or (pid is not None and (process.pid != pid or not process.alive())):
            raise EngineError("engine_closed", "the engine of this tunnel has ended")
        return await self._call(getattr(process.client, method), *args, **kwargs)

    def on_death(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in the loop when the engine ends by itself."""
        self._on_death.add(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Undo :meth:`on_death`."""
        self._on_death.discard(callback)

    async def close(self) -> None:
        """End the engine; it gives back what is left to revoke."""
        async with self._starting:
            await self._end()
            given, self._given = self._given, None
            if given is not None:
                await self._call(given.close)

    async def _end(self) -> None:
        watches, self._watches = self._watches, []
        for watch in watches:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
        process, self._process = self._process, None
        if process is not None:
            await self._call(process.close)

    async def _watched(self, process: EngineProcess) -> None:
        await _ended(process)
        log.error("the engine (pid %d) ended by itself; tunnels are rebuilt", process.pid)
        for callback in tuple(self._on_death):
            callback()


async def _ended(process: EngineProcess) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(process.pid)
            loop, done = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(descriptor, done.set)
            try:
                await done.wait()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
            return
    while process.alive():  # noqa: ASYNC110 - nothing here tells of its end
        await asyncio.sleep(POLL)


def engine_failed(error: EngineError) -> EngineFailed:
    """The SDK's error for one of the engine's."""
    if isinstance(error, EngineMissing):
        return EngineFailed(error.detail, code=error.code)
    return EngineFailed(error.detail, code=error.code, hint="`lattice doctor` looks for the cause")
