"""The background thread with the event loop in which all identities of this process live.

It starts with the first identity and ends with the last one, and with it the engine. An agent that
blocks its own loop for minutes is renewed all the same.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar

from lattice_sdk import signals
from lattice_sdk.enginehost import EngineHost
from lattice_sdk.errors import IdentityClosed

log = logging.getLogger("lattice.runtime")
P = ParamSpec("P")
T = TypeVar("T")

CALLS_AT_ONCE = 64  # of the engine and of hooks; each is a thread while it waits
DRAIN = 5.0  # seconds
GOODBYE = 12.0  # seconds for all identities to leave when the process ends; the engine has as many


class Member(Protocol):
    """An identity's lifecycle, as the runtime sees it."""

    async def close(self) -> None:
        """Give the identity back. Again without effect."""


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that still resolves names when the interpreter ends.

    At that time the standard library starts no threads for it any more, but identities are deleted.
    """

    runtime: Runtime

    async def getaddrinfo(self, host: Any, port: Any, **options: int) -> Any:
        try:
            return await super().getaddrinfo(host, port, **options)
        except RuntimeError:
            return socket.getaddrinfo(host, port, **options)


class Runtime:
    """One background thread, its loop and its engine. Made by :func:`join`."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.members: set[Member] = set()
        self.loop = _Loop()
        self.loop.runtime = self
        self.engine = EngineHost(self.call)
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._pool = concurrent.futures.ThreadPoolExecutor(CALLS_AT_ONCE, "lattice-call")
        self._answers: dict[Callable[[], Any], asyncio.Future[Any]] = {}
        # What came in before the end is done; nothing comes in after it, and waits for ever.
        self._door = threading.Lock()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="lattice", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine in the background loop.

        Raises:
            IdentityClosed: the loop belongs to the parent process, or has ended.
        """
        try:
            if self.pid != os.getpid():
                raise forked()
            with self._door:
                if self._over:
                    raise RuntimeError("the loop has ended")
                return asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError:
            work.close()
            raise IdentityClosed("the agent is closed", hint="Make a new LatticeAgent") from None
        except IdentityClosed:
            work.close()
            raise

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that blocks, in a thread; in the loop itself when threads are over."""
        try:
            future = self._pool.submit(function, *args, **kwargs)
        except RuntimeError:
            return function(*args, **kwargs)
        return await asyncio.wrap_future(future)

    async def once(self, function: Callable[[], T]) -> T:
        """:meth:`call`; who asks again has the same answer, for as long as this runs."""
        asking = self._answers.get(function)
        if asking is None:
            asking = self._answers[function] = asyncio.ensure_future(self.call(function))
        return await asyncio.shield(asking)

    async def leave(self, member: Member) -> None:
        """Take a member off; with the last one engine and thread end."""
        global _current
        with _lock:
            self.members.discard(member)
            if self.members or self.loop.is_closed():
                return
            if _current is self:
                _current = None
        await self.engine.close()
        self.loop.call_soon(self.loop.stop)

    def idle(self) -> bool:
        """Whether nobody lives here any more; then ``ended`` comes soon."""
        return not self.members

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            with self._door:
                self._over = True
            self.loop.run_until_complete(_drain())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self._pool.shutdown(wait=True)
            self.loop.close()
            self.ended.set_result(None)


async def _drain() -> None:
    """Let what the last member's leaving left under way come to its end."""
    deadline = asyncio.get_running_loop().time() + DRAIN
    await asyncio.sleep(0)  # what was submitted from other threads becomes tasks
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        left = max(deadline - asyncio.get_running_loop().time(), 0)
        _, late = await asyncio.wait(tasks, timeout=left)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


_lock = threading.Lock()
_current: Runtime | None = None
# Of parent processes, kept so that nothing of theirs is closed by garbage collection.
_inherited: list[Runtime] = []


def join(member: Member) -> Runtime:
    """The process's runtime, with a new member in it."""
    global _current
    signals.install(close_all)
    with _lock:
        if _current is None:
            _current = Runtime()
        _current.members.add(member)
        return _current


def current() -> Runtime:
    """The runtime of the loop that this is called in."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, _Loop):
        raise RuntimeError("not in the background loop of lattice_sdk")
    return loop.runtime


def close_all(timeout: float = GOODBYE) -> None:
    """Close every identity of this process, at once, from any thread but the background one.

    Args:
        timeout: seconds to wait; what is not done then is left to the engine's revoke.
    """
    runtime = _current
    if runtime is None or runtime.pid != os.getpid():
        return
    members = tuple(runtime.members)

    async def leave() -> None:
        await asyncio.gather(*(member.close() for member in members), return_exceptions=True)

    try:
        runtime.submit(leave()).result(timeout)
        runtime.ended.result(timeout)
    except TimeoutError:
        log.warning("not all identities were given back within %g s", timeout)
    except IdentityClosed:
        return


def forked() -> IdentityClosed:
    """The error for an agent that is used in a child of the process that opened it."""
    return IdentityClosed(
        "this agent belongs to the parent process, and a forked child owns nothing",
        code="forked",
        hint="Make a new LatticeAgent in the child",
    )


async def finish(work: Awaitable[T]) -> T:
    """Wait for something to its end whatever cancellations come; one that came is raised then."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except BaseException:  # noqa: S110 - raised by result() below
            pass
    if cancelled is not None:
        with contextlib.suppress(BaseException):
            task.result()
        raise cancelled
    return task.result()


def _after_fork() -> None:
    global _current, _lock
    _lock = threading.Lock()
    if _current is not None:
        _inherited.append(_current)
    _current = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
# Not threading's own hook, which comes before user threads have ended: they may still work.
atexit.register(close_all)
