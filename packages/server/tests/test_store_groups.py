"""Group commit: many transactions, one wait for the disk, and each for itself in success or not."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from lattice_server.store import schema
from lattice_server.store.database import BUSY_TIMEOUT_MS, Database
from lattice_server.store.groups import GroupWriter
from lattice_server.store.queries import services_of

pytestmark = pytest.mark.anyio
FACTS = schema.facts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lattice.db"


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{file}")
    await database.migrate()
    yield database
    await database.close()


def writer_of(database: Database) -> GroupWriter:
    return database._sqlite_in_place().writer


def commits_of(database: Database) -> list[str]:
    """Gets each COMMIT from now on."""
    found: list[str] = []
    driver = writer_of(database)._connection.driver
    driver.set_trace_callback(lambda said: found.append(said) if said == "COMMIT" else None)
    return found


async def put(database: Database, key: str, told: list[str] | None = None) -> None:
    async with database.write() as tx:
        await tx.connection.execute(insert(FACTS).values(key=key, value="x"))
        if told is not None:
            tx.after_commit.append(lambda: told.append(key))


async def together(database: Database, *writers: Coroutine[Any, Any, None]) -> list[Any]:
    """Run writers that stand in line at the same time, and so are one group; how they ended."""
    tasks = [asyncio.create_task(writer) for writer in writers]
    with suppress(SQLAlchemyError, RuntimeError):  # it shares their fate
        async with database.write():
            await asyncio.sleep(0)
    return await asyncio.gather(*tasks, return_exceptions=True)


def keys(file: Path) -> set[str]:
    """What others see."""
    with sqlite3.connect(file) as connection:
        return {row[0] for row in connection.execute("SELECT key FROM facts")}


async def test_transactions_that_come_together_share_commits(
    database: Database, file: Path
) -> None:
    commits, told = commits_of(database), list[str]()
    names = [f"fact-{n:03}" for n in range(100)]
    await asyncio.gather(*(put(database, name, told) for name in names))
    assert keys(file) == set(names)
    assert told == names  # in the order of the transactions
    assert 1 <= len(commits) <= 5


async def test_change_is_on_the_disk_before_its_writer_goes_on(
    database: Database, file: Path
) -> None:
    async def writer(name: str) -> bool:
        await put(database, name)
        return name in keys(file)

    assert all(await asyncio.gather(*(writer(f"fact-{n}") for n in range(20))))
    [mode] = writer_of(database)._connection.driver.execute("PRAGMA synchronous").fetchone()
    assert mode == 2  # FULL: https://www.sqlite.org/pragma.html#pragma_synchronous


async def test_transaction_that_fails_takes_nobody_with_it(database: Database, file: Path) -> None:
    told: list[str] = []

    async def failing() -> None:
        async with database.write() as tx:
            await tx.connection.execute(insert(FACTS).values(key="bad", value="x"))
            tx.after_commit.append(lambda: told.append("bad"))
            await tx.connection.execute(insert(FACTS).values(key="good-1", value="again"))

    done = await together(
        database, put(database, "good-1", told), failing(), put(database, "good-2", told)
    )
    assert [type(one) for one in done] == [type(None), IntegrityError, type(None)]
    assert keys(file) == {"good-1", "good-2"}
    assert told == ["good-1", "good-2"]


async def test_commit_that_fails_is_told_to_each_of_its_group(
    database: Database, file: Path
) -> None:
    told: list[str] = []
    writer_of(database)._connection.say("PRAGMA foreign_keys = ON")
    async with database.write() as tx:
        await tx.connection.execute(text("CREATE TABLE one (n INTEGER PRIMARY KEY)"))
        await tx.connection.execute(
            text("CREATE TABLE two (n REFERENCES one DEFERRABLE INITIALLY DEFERRED)")
        )

    async def orphan() -> None:
        async with database.write() as tx:
            await tx.connection.execute(text("INSERT INTO two VALUES (7)"))

    done = await together(database, put(database, "fact", told), orphan())
    assert [type(one) for one in done] == [IntegrityError, IntegrityError]
    assert (keys(file), told) == (set(), [])
    await put(database, "fact")  # and it goes on
    assert keys(file) == {"fact"}


async def test_full_database_undoes_the_whole_group(database: Database, file: Path) -> None:
    """SQLite may undo everything after some errors; then nobody is told that it was written."""
    driver = writer_of(database)._connection.driver
    [pages] = driver.execute("PRAGMA page_count").fetchone()
    driver.execute(f"PRAGMA max_page_count = {pages + 2}")

    async def huge() -> None:
        async with database.write() as tx:
            value = {"key": "huge", "value": "x" * 100_000}
            await tx.connection.execute(insert(FACTS).values(**value))

    first, second = await together(database, put(database, "fact"), huge())
    assert [type(first), type(second)] == [RuntimeError, OperationalError]
    assert keys(file) == set()
    driver.execute("PRAGMA max_page_count = 1000000")
    await put(database, "later")
    assert "later" in keys(file)


async def test_cancelled_writer_is_cancelled_after_its_change_is_written(
    database: Database, file: Path
) -> None:
    reached: list[str] = []

    async def write() -> None:
        await put(database, "fact")
        reached.append("after the commit")
        await asyncio.sleep(0)
        reached.append("never")

    task = asyncio.create_task(write())
    await asyncio.sleep(0)
    assert writer_of(database)._committing
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reached == ["after the commit"]
    assert keys(file) == {"fact"}


async def test_writer_cancelled_in_line_leaves_the_line(database: Database, file: Path) -> None:
    async with database.write() as tx:
        waiting = asyncio.create_task(put(database, "never"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await tx.connection.execute(insert(FACTS).values(key="fact", value="x"))
    await put(database, "later")
    assert keys(file) == {"fact", "later"}


async def test_commit_that_was_left_to_one_who_is_cancelled_is_not_forgotten(
    database: Database, file: Path
) -> None:
    async def first() -> None:
        async with database.write() as tx:
            await tx.connection.execute(insert(FACTS).values(key="fact", value="x"))
            last.cancel()  # it stands in line, and will not know of this before it is its turn

    async with database.write():
        going = asyncio.create_task(first())
        last = asyncio.create_task(put(database, "never"))
        await asyncio.sleep(0)
    await asyncio.wait_for(going, 10)
    assert keys(file) == {"fact"}


async def test_other_process_that_writes_is_waited_for_without_standing_still(
    database: Database, file: Path
) -> None:
    await put(database, "first")
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO facts VALUES ('other', 'x')")
        begun = asyncio.get_running_loop().time()
        waiting = asyncio.create_task(put(database, "second"))
        for _ in range(20):  # this loop goes on, and others may read
            await asyncio.sleep(0.001)
            async with database.look() as connection:
                assert await connection.scalar(select(FACTS.c.key)) == "first"
        assert asyncio.get_running_loop().time() - begun < BUSY_TIMEOUT_MS / 1000
        assert not waiting.done()
        other.execute("COMMIT")
        await waiting
    assert keys(file) == {"first", "other", "second"}


async def service(database: Database, name: str) -> None:
    async with database.write() as tx:
        await tx.connection.execute(
            insert(schema.services).values(
                workspace_id="ws",
                name=name,
                peer_id=name,
                address=name,
                hostnames=[],
                ports=[],
                designated=True,
                created_at=1,
            )
        )


async def names(database: Database) -> list[str]:
    async with database.write() as tx:
        return [one.name for one in await services_of(tx.connection, "ws")]


async def test_what_is_remembered_holds_until_somebody_changes_it(
    database: Database, file: Path
) -> None:
    assert await names(database) == []
    await service(database, "one")
    assert await names(database) == ["one"]

    async def undone() -> None:
        async with database.write() as tx:
            await tx.connection.execute(update(schema.services).values(name="changed"))
            assert [s.name for s in await services_of(tx.connection, "ws")] == ["changed"]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await undone()
    assert await names(database) == ["one"]
    with sqlite3.connect(file) as other:  # an operator with the sqlite3 program
        other.execute("UPDATE services SET name = 'two'")
    assert await names(database) == ["two"]


async def test_remembered_rows_are_not_read_again(database: Database) -> None:
    await service(database, "one")
    await names(database)
    said: list[Any] = []
    writer_of(database)._connection.driver.set_trace_callback(said.append)
    assert await names(database) == ["one"]
    assert said
    assert not [one for one in said if "services" in one]
