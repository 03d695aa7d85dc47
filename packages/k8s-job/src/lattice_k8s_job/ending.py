"""The request to end: SIGTERM from the kubelet, SIGINT from a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

STATUS = 128 + signal.SIGTERM  # of a role that was ended before it was done


class Ending:
    """Notes the request whenever it comes. Made in the main thread, before anything else.

    Attributes:
        asked: whether it has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._waiting is not None:
            loop, event = self._waiting
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        """Until it comes."""
        if self._waiting is None:
            self._waiting = (asyncio.get_running_loop(), asyncio.Event())
        if not self.asked:
            await self._waiting[1].wait()

    async def cut(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do ``work`` and return what it gave; ``None`` when the request came and cancelled it."""
        task = asyncio.ensure_future(work)
        asked = asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                return await task
            return None
        finally:
            asked.cancel()
