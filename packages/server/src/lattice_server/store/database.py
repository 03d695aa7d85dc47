"""Connections and transactions: one writer at a time, so that changes have an order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

BUSY_TIMEOUT_MS = 5000
MIGRATIONS = Path(__file__).parents[1] / "migrations"


class Transaction:
    """A write transaction: statements through ``connection``, then what follows from its commit."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.after_commit: list[Callable[[], object]] = []


class Database:
    """The store of one control plane.

    Args:
        url: an SQLAlchemy URL with an async driver, such as ``sqlite+aiosqlite:///FILE``.
    """

    def __init__(self, url: str) -> None:
        self._sqlite = make_url(url).get_backend_name() == "sqlite"
        # hide_parameters: a failing statement must not carry token hashes into a log
        self._engine = create_async_engine(url, hide_parameters=True, pool_pre_ping=False)
        self._writer = asyncio.Lock()
        if self._sqlite:
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A consistent view for reading."""
        async with self._engine.connect() as connection, connection.begin():
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """The one write transaction at this time; commits on leaving, rolls back on an exception.

        The callbacks in ``after_commit`` run before the next writer begins. They must not fail or
        block.
        """
        async with self._writer:
            async with self._engine.connect() as connection:
                await connection.execution_options(lattice_write=True)
                async with connection.begin():
                    transaction = Transaction(connection)
                    yield transaction
            for callback in transaction.after_commit:
                callback()

    async def migrate(self) -> None:
        """Bring the schema up to this version of the program, in one transaction."""
        async with self.write() as tx:
            await tx.connection.run_sync(_upgrade)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()


def _upgrade(connection: Connection) -> None:
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


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("lattice_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
