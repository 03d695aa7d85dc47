"""Group commit for SQLite: transactions that come while the disk is busy share the next commit.

A commit waits for the disk (``synchronous = FULL``: what was answered survives a power cut), and
that wait is the same for one change as for a hundred. So each transaction is a savepoint in one
that all share, and is answered when the shared one is on the disk. Nobody waits for others to come:
a group is committed as soon as nobody stands in line, and those who come meanwhile are the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from sqlalchemy.exc import OperationalError

from lattice_server.store.connection import Connection, InPlace

log = logging.getLogger("lattice.store")

MOST_MEMBERS = 256
LONGEST_SECONDS = 0.02  # until a group is committed although others wait to join it
SAVEPOINT = "lattice"


class Transaction:
    """A write transaction: statements through ``connection``, then what follows from its commit."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.after_commit: list[Callable[[], object]] = []


class _Group:
    """Transactions that are committed together, or not at all."""

    def __init__(self) -> None:
        self.members: list[Transaction] = []
        self.told: list[asyncio.Future[None]] = []
        self.begun = time.monotonic()
        self.committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def join(self, transaction: Transaction) -> asyncio.Future[None]:
        """Take a transaction in; what its writer waits for."""
        self.members.append(transaction)
        self.told.append(asyncio.get_running_loop().create_future())
        return self.told[-1]

    def end(self, error: BaseException | None = None) -> None:
        """Tell everybody what has become of it."""
        for future in (self.committed, *self.told):
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
                future.exception()  # it may be that nobody is left to take it

    async def outcome(self, told: asyncio.Future[None]) -> None:
        """Wait for the commit, also when this task is cancelled meanwhile: then afterwards.

        Whoever is told that a change failed takes back what belongs to it, such as an address; so
        nobody is told so of a change that is written after all.
        """
        try:
            await told
        except asyncio.CancelledError:
            await _uncancelled(self.committed)

    def full(self) -> bool:
        return len(self.members) >= MOST_MEMBERS or time.monotonic() - self.begun > LONGEST_SECONDS


class GroupWriter:
    """The one writer of an SQLite database.

    Args:
        connection: its connection, in no transaction.
        busy_ms: how long another process may keep the database from being written to.
    """

    def __init__(self, connection: InPlace, busy_ms: int) -> None:
        self._connection, self._busy_ms = connection, busy_ms
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._version = 0
        self._group: _Group | None = None
        self._committing: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1, "lattice-commit")

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One transaction; on leaving it is on the disk, on an exception undone.

        The callbacks in ``after_commit`` run before the next group begins, in the order of the
        transactions. They must not fail or block.
        """
        self._waiting += 1
        try:
            await self._turn.acquire()
        except BaseException:
            # Perhaps those before have left their commit to this one.
            self._in_background(self._commit_for_others())
            raise
        finally:
            self._waiting -= 1
        group = self._group
        try:
            if group is None:
                group = self._group = await self._begin()
            transaction = Transaction(self._connection)
            self._connection.say(f"SAVEPOINT {SAVEPOINT}")
            try:
                yield transaction
            except BaseException as error:
                self._undo(group, error)
                raise
            self._connection.say(f"RELEASE {SAVEPOINT}")
            told = group.join(transaction)
        finally:
            self._pass_on()
        await group.outcome(told)

    async def flush(self) -> None:
        """Return once nothing is under way."""
        async with self.transaction():
            pass

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    async def _begin(self) -> _Group:
        # Without waiting: it would be the whole program that waits. Only another process can be in
        # the way, such as a backup's, and then a thread waits.
        driver = self._connection.driver
        self._connection.say("PRAGMA busy_timeout = 0")
        try:
            self._connection.say("BEGIN IMMEDIATE")
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", "") != "SQLITE_BUSY":
                raise
            self._connection.say(f"PRAGMA busy_timeout = {self._busy_ms}")
            await self._begin_waiting()
        assert driver.in_transaction  # noqa: S101 - what all that follows relies on
        # Changes by others, such as an operator's with the sqlite3 program.
        [version] = driver.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._version = version
            self._connection.memory.clear()
        return _Group()

    async def _begin_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.run_in_executor(self._thread, self._connection.say, "BEGIN IMMEDIATE")
        try:
            await asyncio.shield(begun)
        except asyncio.CancelledError:
            await asyncio.wait([begun])
            if self._connection.driver.in_transaction:
                self._connection.say("ROLLBACK")
            raise

    def _undo(self, group: _Group, error: BaseException) -> None:
        """Undo the transaction that failed, and with it the group where SQLite has done so."""
        if self._connection.driver.in_transaction:
            self._connection.say(f"ROLLBACK TO {SAVEPOINT}")
            self._connection.say(f"RELEASE {SAVEPOINT}")
            return
        # https://www.sqlite.org/lang_transaction.html#response_to_errors_within_a_transaction
        undone = RuntimeError("the database undid this with another change, after an error in that")
        undone.__cause__ = error
        self._fail(group, undone)

    def _pass_on(self) -> None:
        """Let the next one in, or commit first."""
        group = self._group
        if group is None or (self._waiting and not group.full()):
            self._turn.release()
        else:
            # Not the task of a member, which may be cancelled: others rely on it.
            self._in_background(self._commit(group))

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._committing.add(task)
        task.add_done_callback(self._committing.discard)

    async def _commit_for_others(self) -> None:
        await self._turn.acquire()
        self._pass_on()

    async def _commit(self, group: _Group) -> None:
        loop = asyncio.get_running_loop()
        writing = loop.run_in_executor(self._thread, self._connection.driver.execute, "COMMIT")
        while not writing.done():
            # Also when the loop ends: the connection is not to be touched before.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([writing])
        error = writing.exception()
        try:
            if error is not None:
                if self._connection.driver.in_transaction:
                    self._connection.say("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    error = self._connection.wrapped(error, "COMMIT")
                self._fail(group, error)
                return
            self._group = None
            self._connection.memory.settled()
            for callback in (one for member in group.members for one in member.after_commit):
                try:
                    callback()
                except Exception:
                    log.exception("what follows from a change failed; the change is written")
            group.end()
        finally:
            self._turn.release()

    def _fail(self, group: _Group, error: BaseException) -> None:
        self._group = None
        self._connection.memory.settled()
        group.end(error)


async def _uncancelled(committed: asyncio.Future[None]) -> None:
    """Wait on, and have this task be cancelled when it is over."""
    while not committed.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([committed])
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()
        task.cancel()
    committed.result()
