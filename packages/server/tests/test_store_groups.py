"""Group commit: many transactions, one wait for the disk, and each for itself in success or not."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from lattice_server.store import schema, statements
from lattice_server.store.database import BUSY_TIMEOUT_MS, Database
from lattice_server.store.events import peer_event
from lattice_server.store.groups import GroupWriter
from lattice_server.store.queries import services_of
from lattice_server.store.records import PeerRecord

pytestmark = pytest.mark.anyio
FACTS = schema.facts


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lattice.db"


@pytest.fixture
async def database(file: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    # Or a busy machine ends a group before those have joined it who stand in line.
    monkeypatch.setattr("lattice_server.store.groups.LONGEST_SECONDS", 60)
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


async def test_what_fails_after_the_commit_keeps_nobody_from_going_on(
    database: Database, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    async def failing() -> None:
        async with database.write() as tx:
            await tx.connection.execute(insert(FACTS).values(key="fact", value="x"))
            tx.after_commit.append(lambda: 1 // 0)

    assert await together(database, failing(), put(database, "other", told)) == [None, None]
    assert (keys(file), told) == ({"fact", "other"}, ["other"])
    assert "ZeroDivisionError" in caplog.text


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


async def test_prepared_statements_do_the_same_through_an_asynchronous_driver(
    database: Database,
) -> None:
    """What other databases than SQLite are reached by, with SQLite's asynchronous driver."""
    peer = PeerRecord(
        id="peer-1", kind="agent", name="a", agent_type="a", workspace_id="ws", preset="isolated",
        allow=[{"to": "10.96.0.7", "protocol": "tcp", "port": 1}], address="10.96.0.9",
        public_key="key", token_hash="hash", issuer="token-1", ttl=1, max_ttl=2, created_at=3,
        expires_at=4, max_expires_at=None, renewals=0, version=1, state="active", ended_at=None,
    )  # fmt: skip
    found: list[list[Any]] = []
    for write in (database._write, database.write):
        async with write() as tx:
            done = tx.connection
            assert await done.run(statements.INSERT_PEER, peer.values()) == 1
            assert await done.fetch(statements.LIVE_PEER_BY_KEY, key="other") == []
            [row] = await done.fetch(statements.LIVE_PEER_BY_KEY, key="key")
            assert PeerRecord(*row) == peer
            change = {"ttl": 7, "allow": [], "public_key": "new"}
            update_peer = statements.update_peer(tuple(change))
            assert await done.run(update_peer, {**change, "peer": "peer-1"}) == 1
            ended = {"peer": "peer-1", "state": "deleted", "ended_at": 9}
            assert await done.run(statements.END_PEER, ended) == 1
            assert await done.run(statements.COUNT_USE, {"token": "none", "now": 5}) == 0
            event = peer_event("enrolled", 1, peer, more=1)
            assert await done.run(statements.INSERT_EVENT, event) == 1
            rows = await done.fetch(statements.PEER_BY_ID, id="peer-1")
            rows += await done.fetch(statements.TOKEN_BY_HASH, hash="h", now=1, kind="admin")
            rows += [
                row async for part in done.stream(statements.LIVE_PEERS, now=1) for row in part
            ]
            found.append([tuple(row) for row in rows])
            await done.execute(delete(schema.peers))
    assert found[0] == found[1]
    [values] = found[0]
    assert PeerRecord(*values) == replace(
        peer, ttl=7, allow=[], public_key="new", state="deleted", ended_at=9, version=2
    )
