"""What is forgotten, and whose: workspaces share the log, and none evicts another's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, insert, select

from lattice_server import forgetting, reconciler
from lattice_server.clock import now_ms
from lattice_server.store import schema
from lattice_server.store.events import event


@given(
    st.dictionaries(st.text("abcdefgh", max_size=2), st.integers(1, 500), max_size=12),
    st.integers(0, 2000),
)
def test_shares_take_from_those_who_have_most(counts: dict[str | None, int], limit: int) -> None:
    excess = forgetting.shares(counts, limit)
    kept = {of: count - excess.get(of, 0) for of, count in counts.items()}
    assert sum(kept.values()) == min(sum(counts.values()), limit) or (
        # A rest that cannot be shared out evenly is not kept.
        excess and limit - len(excess) < sum(kept.values()) <= limit
    )
    for of in excess:
        assert kept[of] == max(kept.values())


def fill(plane: Any, table: Any, rows: list[dict[str, Any]]) -> None:
    async def write() -> None:
        async with plane.control.database.write() as tx:
            await tx.connection.execute(insert(table), rows)

    plane.run(write())


def count(plane: Any, table: Any, *conditions: Any) -> int:
    async def read() -> int:
        async with plane.control.database.read() as connection:
            query = select(func.count()).select_from(table).where(*conditions)
            return int(await connection.scalar(query))

    return int(plane.run(read()))


def test_a_workspace_that_fills_the_log_loses_its_own_events_alone(
    make_control_plane: Callable[..., Any],
) -> None:
    with make_control_plane(reconcile_interval=0, event_limit=1000) as plane:
        plane.gateway()
        one = plane.enrolled(plane.workspace("ws-quiet"))
        before = [e for e in plane.events() if e["workspaceId"] == "ws-quiet"]
        assert len(before) > 1
        flood = [event("renewed", now_ms(), workspace="ws-busy", n=n) for n in range(30_000)]
        fill(plane, schema.events, flood)
        plane.run(reconciler.reconcile(plane.control))
        kept = [e for e in plane.events() if e["workspaceId"] == "ws-quiet"]
        assert kept == before
        assert any(e["peerId"] == one["peerId"] for e in kept)
        # In one pass, however many there were; the newest of its own are left.
        assert 900 < count(plane, schema.events) <= 1000
        assert plane.events()[-1]["data"] == {"n": 29_999}


def test_all_that_is_old_is_forgotten_in_one_pass(make_control_plane: Callable[..., Any]) -> None:
    with make_control_plane(reconcile_interval=0, event_retention="1h") as plane:
        plane.workspace("ws")
        old = [event("renewed", 1000, workspace="ws", n=n) for n in range(25_000)]
        fill(plane, schema.events, old)
        plane.run(reconciler.reconcile(plane.control))
        assert count(plane, schema.events, schema.events.c.at == 1000) == 0
        assert plane.events()


def test_ended_peers_of_one_workspace_are_bounded_and_the_living_stay(
    make_control_plane: Callable[..., Any],
) -> None:
    with make_control_plane(reconcile_interval=0) as plane:
        plane.gateway()
        tokens = {name: plane.workspace(name) for name in ("ws-busy", "ws-quiet")}
        quiet = plane.enrolled(tokens["ws-quiet"])
        plane.call("DELETE", f"/api/v1/peers/{quiet['peerId']}", quiet["enrollmentToken"])
        for _ in range(6):
            one = plane.enrolled(tokens["ws-busy"])
            plane.call("DELETE", f"/api/v1/peers/{one['peerId']}", one["enrollmentToken"])
        living = plane.enrolled(tokens["ws-busy"])
        # Below what the setting takes, so that a test need not make a thousand.
        plane.control.settings.event_limit = 4
        plane.run(reconciler.reconcile(plane.control))
        peers = schema.peers.c
        assert count(plane, schema.peers, peers.workspace_id == "ws-busy") == 4
        assert count(plane, schema.peers, peers.id == quiet["peerId"]) == 1
        assert count(plane, schema.peers, peers.id == living["peerId"]) == 1
