"""The store is the only truth: restarts, expiry while down, the reconciler, forgetting."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_restart_keeps_everything_and_moves_no_deadline(
    make_control_plane: Any, directory: Path
) -> None:
    with make_control_plane(data_dir=directory) as plane:
        gateway, token = plane.gateway(), plane.workspace("ws")
        tools = plane.service("ws", "tools")
        one = plane.enrolled(token)
        two = plane.enrolled(token)
        plane.call("DELETE", f"/api/v1/peers/{two['peerId']}", token)
        state, admin, events = dict(gateway.peers), plane.admin, plane.events()
    with make_control_plane(data_dir=directory) as plane:
        assert plane.admin == admin
        [peer] = plane.peers()
        assert (peer["peerId"], peer["expiresAt"]) == (one["peerId"], one["expiresAt"])
        assert plane.events()[: len(events)] == events
        gateway = plane.gateway()
        for held in (state, gateway.peers):
            for peer_object in held.values():
                peer_object.pop("expiresIn")
        assert gateway.peers == state
        addresses = plane.control.addresses
        for address in (tools["address"], one["overlayIP"][:-3], two["overlayIP"][:-3]):
            assert address not in addresses
        path = f"/api/v1/peers/{one['peerId']}/renew"
        assert plane.call("POST", path, one["enrollmentToken"]).status_code == 200
        assert plane.service("ws", "tools")["address"] == tools["address"]


def test_what_expired_while_the_server_was_down_is_gone_before_it_answers(
    make_control_plane: Any, directory: Path, wait: Any
) -> None:
    with make_control_plane(data_dir=directory) as plane:
        plane.gateway()
        one = plane.enrolled(plane.workspace("ws"), ttl="1s")
        wait("the deadline", lambda: plane.peers() == [])
    with make_control_plane(data_dir=directory) as plane:
        [event] = plane.events("expired")
        assert event["peerId"] == one["peerId"]


def test_reconciler_ends_what_nobody_reported_and_frees_addresses(
    make_control_plane: Any, wait: Any
) -> None:
    with make_control_plane(reconcile_interval=0.05, quarantine=0) as plane:
        gateway, token = plane.gateway(), plane.workspace("ws")
        free = len(plane.control.addresses)
        ids = {plane.enrolled(token, ttl="1s")["peerId"] for _ in range(3)}
        wait("the events", lambda: len(plane.events("expired")) == 3)
        assert {event["peerId"] for event in plane.events("expired")} == ids
        wait("the gateway", lambda: gateway.peers == {})
        wait("the addresses", lambda: len(plane.control.addresses) == free)
        assert 'lattice_peers_ended_total{reason="expired"} 3.0' in plane.http.get("/metrics").text


def test_old_peers_and_events_are_forgotten(make_control_plane: Any, wait: Any) -> None:
    with make_control_plane(reconcile_interval=0.05, retention=0, event_retention=0) as plane:
        plane.gateway()
        token = plane.workspace("ws")
        one = plane.enrolled(token)
        plane.call("DELETE", f"/api/v1/peers/{one['peerId']}", token)
        path = f"/api/v1/peers/{one['peerId']}/renew"

        def code() -> Any:
            return plane.call("POST", path, one["enrollmentToken"]).json()["code"]

        wait("the peer to be forgotten", lambda: code() == "invalid_token")
        wait("the events to be forgotten", lambda: plane.events() == [])


def test_another_overlay_on_the_same_database_is_refused(
    make_control_plane: Any, directory: Path
) -> None:
    with make_control_plane(data_dir=directory):
        pass
    with (
        pytest.raises(AssertionError, match="did not start"),
        make_control_plane(data_dir=directory, overlay="10.97.0.0/16"),
    ):
        pass


def test_database_is_in_wal_mode_and_migrated(make_control_plane: Any, directory: Path) -> None:
    from alembic.script import ScriptDirectory

    from lattice_server.store.database import MIGRATIONS

    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    with (
        make_control_plane(data_dir=directory),
        sqlite3.connect(directory / "lattice.db") as connection,
    ):
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        versions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        assert versions == [(head,)]


@pytest.mark.anyio
async def test_migrations_make_exactly_the_tables_of_the_program(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from lattice_server.store.database import Database
    from lattice_server.store.schema import metadata

    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    await database.migrate()
    await database.migrate()
    async with database.read() as connection:
        difference = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), metadata)
        )
    await database.close()
    assert difference == []
