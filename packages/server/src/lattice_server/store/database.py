"""Connections and transactions: one writer at a time, so that changes have an order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import NullPool, create_engine, event, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from lattice_server.store.connection import Connection, InPlace, Pooled
from lattice_server.store.groups import GroupWriter, Transaction
from lattice_server.store.memory import Memory

__all__ = ["MIGRATIONS", "Database", "Transaction"]

BUSY_TIMEOUT_MS = 5000
MIGRATIONS = Path(__file__).parents[1] / "migrations"


class Database:
    """The store of one control plane.

    Args:
        url: an SQLAlchemy URL with an async driver, such as ``sqlite+aiosqlite:///FILE``.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._sqlite = self._url.get_backend_name() == "sqlite"
        # hide_parameters: a failing statement must not carry token hashes into a log
        self._engine = create_async_engine(url, hide_parameters=True, pool_pre_ping=False)
        self._writer = asyncio.Lock()
        self._in_place: _InPlaceSqlite | None = None
        if self._sqlite:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Pooled]:
        """A consistent view for reading, however much."""
        async with self._engine.connect() as connection, connection.begin():
            yield Pooled(connection)

    def look(self) -> AbstractAsyncContextManager[Connection]:
        """For reading a few rows by their keys; each statement sees what is committed by then."""
        return _Look(self._sqlite_in_place().reader) if self._sqlite else self.read()

    def write(self) -> AbstractAsyncContextManager[Transaction]:
        """A write transaction, one at a time; commits on leaving, rolls back on an exception.

        The callbacks in ``after_commit`` run after the commit, in the order of the transactions,
        and before anybody sees the outcome. They must not fail or block.
        """
        return self._sqlite_in_place().writer.transaction() if self._sqlite else self._write()

    async def migrate(self) -> None:
        """Bring the schema up to this version of the program, in one transaction."""
        async with self._write() as tx:
            assert isinstance(tx.connection, Pooled)  # noqa: S101 - of this class
            await tx.connection.run_sync(_upgrade)

    async def close(self) -> None:
        """Close all connections."""
        if self._in_place is not None:
            await self._in_place.close()
            self._in_place = None
        await self._engine.dispose()

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[Transaction]:
        async with self._writer:
            async with self._engine.connect() as connection:
                await connection.execution_options(lattice_write=True)
                async with connection.begin():
                    transaction = Transaction(Pooled(connection))
                    yield transaction
            for callback in transaction.after_commit:
                callback()

    def _sqlite_in_place(self) -> _InPlaceSqlite:
        if self._in_place is None:
            self._in_place = _InPlaceSqlite(str(self._url.database))
        return self._in_place


class _InPlaceSqlite:
    """A connection for the one writer and another for looking, both used by the loop's thread."""

    def __init__(self, file: str) -> None:
        # The thread that commits is another one, never at the same time.
        self._engine = create_engine(
            f"sqlite:///{file}",
            poolclass=NullPool,
            hide_parameters=True,
            connect_args={"check_same_thread": False},
        )
        event.listen(self._engine, "connect", _prepare_sqlite)
        event.listen(self._engine, "connect", _prepare_for_much)
        memory = Memory()
        self._connections = [self._engine.connect(), self._engine.connect()]
        writing, looking = self._connections
        self.reader = InPlace(looking, memory)
        self.writer = GroupWriter(InPlace(writing, memory), BUSY_TIMEOUT_MS)

    async def close(self) -> None:
        """Close them, after what is under way."""
        await self.writer.flush()
        self.writer.close()
        for connection in self._connections:
            connection.close()
        self._engine.dispose()


class _Look:
    """A connection that is there anyway, as a context manager."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def __aenter__(self) -> Connection:
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        return None


def _upgrade(connection: SyncConnection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own implicit BEGIN comes too late for a consistent read and too weak for a write:
    # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#serializable-isolation-savepoints-transactional-ddl
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    # A revocation that was answered must survive a power cut: https://www.sqlite.org/pragma.html#pragma_synchronous
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _prepare_for_much(connection: Any, _record: object) -> None:
    # What a savepoint may have to put back goes to a file beyond 64 KiB, unless told not to.
    connection.execute("PRAGMA temp_store = MEMORY")
    # Identities are found by random keys. In KiB: the indexes of some ten thousand.
    connection.execute("PRAGMA cache_size = -16384")
    # In pages: what is changed again and again in between is written to its place once.
    connection.execute("PRAGMA wal_autocheckpoint = 4000")


def _begin_sqlite(connection: SyncConnection) -> None:
    write = connection.get_execution_options().get("lattice_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
