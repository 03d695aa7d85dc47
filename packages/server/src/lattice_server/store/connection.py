"""Connections as the rest of the program uses them: in place for SQLite, else a driver's own.

SQLite is a library, not a server: a statement takes about 10 µs, and handing it to a thread and
back, as asynchronous drivers for it do, several times that. So hot paths execute it where they are
(:class:`InPlace`); what waits for the disk, a commit, is left to a thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection as SyncConnection
from sqlalchemy import CursorResult, Executable, ScalarResult, Table, UpdateBase
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from lattice_server.store.memory import REMEMBERED, Memory
from lattice_server.store.prepared import Compiled, Prepared, Values

T = TypeVar("T")
AT_ONCE = 2000  # rows of a long answer, until others have a turn


class Connection(ABC):
    """What statements are executed on."""

    @abstractmethod
    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Execute a statement."""

    @abstractmethod
    async def fetch(self, prepared: Prepared, **values: Any) -> list[Sequence[Any]]:
        """The rows of a prepared query, their columns in its order."""

    @abstractmethod
    def stream(self, prepared: Prepared, **values: Any) -> AsyncIterator[list[Sequence[Any]]]:
        """The rows of a prepared query that may be many, some at a time; others go on meanwhile."""

    @abstractmethod
    async def run(self, prepared: Prepared, values: Values) -> int:
        """Execute a prepared change; how many rows it changed."""

    @property
    def memory(self) -> Memory | None:
        """What may be remembered of what is read here, if anything."""
        return None

    async def scalar(self, statement: Executable) -> Any:
        """The first column of the first row."""
        return (await self.execute(statement)).scalar()

    async def scalars(self, statement: Executable) -> ScalarResult[Any]:
        """The first column of all rows."""
        return (await self.execute(statement)).scalars()


class Pooled(Connection):
    """A connection of an asynchronous driver."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Execute a statement."""
        return await self._connection.execute(statement, parameters)

    async def fetch(self, prepared: Prepared, **values: Any) -> list[Sequence[Any]]:
        """The rows of a prepared query."""
        return list(await self._connection.execute(prepared.statement, values))

    async def stream(self, prepared: Prepared, **values: Any) -> AsyncIterator[list[Sequence[Any]]]:
        """The rows of a prepared query, some at a time."""
        result = await self._connection.stream(prepared.statement, values)
        async for rows in result.partitions(AT_ONCE):
            yield list(rows)

    async def run(self, prepared: Prepared, values: Values) -> int:
        """Execute a prepared change."""
        return (await self._connection.execute(prepared.statement, dict(values))).rowcount

    async def run_sync(self, work: Callable[[SyncConnection], T]) -> T:
        """Hand a synchronous connection to a function."""
        return await self._connection.run_sync(work)


class InPlace(Connection):
    """A connection to SQLite whose statements are executed by the caller, without a detour."""

    def __init__(self, connection: SyncConnection, memory: Memory) -> None:
        self._connection, self._memory = connection, memory
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)  # noqa: S101 - what the URL says
        self.driver = driver

    @property
    def memory(self) -> Memory:
        """What may be remembered."""
        return self._memory

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Execute a statement."""
        table = statement.table if isinstance(statement, UpdateBase) else None
        if isinstance(table, Table) and table.name in REMEMBERED:
            self._memory.touched()
        return self._connection.execute(statement, parameters)

    async def fetch(self, prepared: Prepared, **values: Any) -> list[Sequence[Any]]:
        """The rows of a prepared query."""
        compiled = prepared.compiled(self._connection.dialect)
        return [compiled.row(row) for row in self._driven(compiled, values).fetchall()]

    async def stream(self, prepared: Prepared, **values: Any) -> AsyncIterator[list[Sequence[Any]]]:
        """The rows of a prepared query, some at a time."""
        compiled = prepared.compiled(self._connection.dialect)
        cursor = self._driven(compiled, values)
        while rows := cursor.fetchmany(AT_ONCE):
            yield [compiled.row(row) for row in rows]
            await asyncio.sleep(0)

    async def run(self, prepared: Prepared, values: Values) -> int:
        """Execute a prepared change."""
        return self._driven(prepared.compiled(self._connection.dialect), values).rowcount

    def _driven(self, compiled: Compiled, values: Values) -> sqlite3.Cursor:
        try:
            return self.driver.execute(compiled.text, compiled.parameters(values))
        except sqlite3.Error as error:
            raise self.wrapped(error, compiled.text) from error

    def say(self, text: str) -> None:
        """A statement that begins or ends something."""
        try:
            self.driver.execute(text)
        except sqlite3.Error as error:
            raise self.wrapped(error, text) from error

    def wrapped(self, error: sqlite3.Error, text: str) -> BaseException:
        """The driver's error as SQLAlchemy raises it, without parameters."""
        return DBAPIError.instance(
            text, None, error, sqlite3.Error, hide_parameters=True, dialect=self._connection.dialect
        )
