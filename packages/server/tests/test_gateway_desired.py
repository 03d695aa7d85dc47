import time
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_sdk import clock
from lattice_server.gateway.daemon import _Daemon
from lattice_server.gateway.desired import Assembler, BadMessageError, Change, Desired, Peer

NAMES = st.sampled_from(["peer-a", "peer-b", "peer-c", "peer-d"])
PEERS = st.builds(
    lambda name, key, deadline: Peer({"id": name, "publicKey": key}, deadline),
    NAMES,
    st.sampled_from(["k1", "k2"]),
    st.none() | st.floats(1, 100),
)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    upsert = {peer.fields["id"]: peer for peer in draw(st.lists(PEERS, max_size=3))}
    full = draw(st.booleans())
    remove = set() if full else set(draw(st.lists(NAMES, max_size=2))) - upsert.keys()
    return Change(draw(st.integers(1, 99)), full, upsert, remove)


def wire(name: str, **more: object) -> dict[str, object]:
    peer = {"id": name, "publicKey": "key", "address": "10.96.1.1", "grants": [], "expiresIn": 10}
    return peer | more


@given(st.lists(changes(), min_size=1, max_size=6))
def test_changes_merged_are_the_same_as_one_by_one(steps: list[Change]) -> None:
    start = Change(0, True, {"peer-a": Peer({"id": "peer-a", "publicKey": "k0"}, None)})
    one_by_one, at_once = Desired(), Desired()
    for desired in (one_by_one, at_once):
        desired.commit(start)
    merged = steps[0]
    for step in steps:
        one_by_one.commit(step)
    for step in steps[1:]:
        merged = merged.then(step)
    at_once.commit(merged)
    assert at_once.peers == one_by_one.peers
    assert at_once.revision == one_by_one.revision


@given(changes(), st.floats(0, 100))
def test_nothing_reaches_the_engine_past_its_deadline(change: Change, now: float) -> None:
    body = change.body(now)
    for peer in body["upsert"]:
        assert peer["expiresIn"] is None or 0 < peer["expiresIn"] <= 100 - now + 1e-6
    sent = {peer["id"] for peer in body["upsert"]}
    assert not sent & set(body["remove"])
    if not change.full:
        assert sent | set(body["remove"]) == change.upsert.keys() | change.remove


def test_the_line_of_a_peer_reaches_the_engine() -> None:
    peer = Peer.received(wire("peer-a", line="10.96.1.2", routes=["10.96.2.1"], other=1), now=0.0)
    body = peer.body(1.0)
    assert body is not None
    assert (body["line"], body["routes"], "other" in body) == ("10.96.1.2", ["10.96.2.1"], False)


def test_a_delay_shortens_the_life_that_is_told() -> None:
    change = Assembler().feed(
        {"type": "update", "revision": 2, "upsert": [wire("peer-a")], "remove": []}, now=100.0
    )
    assert change is not None
    assert change.body(103.5)["upsert"][0]["expiresIn"] == 6.5
    assert change.body(110.5) == {"revision": 2, "upsert": [], "remove": ["peer-a"]}


def test_a_full_state_is_complete_with_its_last_chunk() -> None:
    assembler = Assembler()
    first = {"type": "sync", "revision": 4, "upsert": [wire("peer-a")], "remove": [], "last": False}
    assert assembler.feed(first, 0) is None
    change = assembler.feed({**first, "upsert": [wire("peer-b")], "last": True}, 0)
    assert change is not None
    assert change.full
    assert set(change.upsert) == {"peer-a", "peer-b"}


def test_an_update_between_chunks_is_not_lost() -> None:
    assembler = Assembler()
    first = {"type": "sync", "revision": 4, "upsert": [wire("peer-a")], "remove": [], "last": False}
    assembler.feed(first, 0)
    update = {"type": "update", "revision": 5, "upsert": [wire("peer-c")], "remove": ["peer-a"]}
    assert assembler.feed(update, 0) is not None
    change = assembler.feed({**first, "upsert": [wire("peer-b")], "last": True}, 0)
    assert change is not None
    assert set(change.upsert) == {"peer-b", "peer-c"}


def test_fields_of_a_newer_control_plane_do_not_reach_the_engine() -> None:
    change = Assembler().feed(
        {"type": "update", "revision": 1, "upsert": [wire("peer-a", colour="red")], "remove": []}, 0
    )
    assert change is not None
    assert "colour" not in change.body(0)["upsert"][0]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "sync"},
        {"type": "update", "revision": "x", "upsert": [], "remove": []},
        {"type": "update", "revision": 1, "upsert": [{"id": "peer-a"}], "remove": []},
        {"type": "update", "revision": 1, "upsert": ["peer-a"], "remove": []},
        {"type": "update", "revision": 1, "upsert": [wire("a", expiresIn="soon")], "remove": []},
    ],
)
def test_malformed_messages_are_refused(message: dict[str, object]) -> None:
    with pytest.raises(BadMessageError):
        Assembler().feed(message, 0)


def test_a_renewed_peer_is_not_forgotten_by_a_late_expiry() -> None:
    desired = Desired()
    desired.commit(Change(1, True, {"peer-a": Peer({"id": "peer-a"}, 5.0)}))
    desired.drop_expired("peer-a", now=4.0)
    assert "peer-a" in desired.peers
    desired.drop_expired("peer-a", now=5.0)
    assert "peer-a" not in desired.peers


def test_deadlines_go_on_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOCK_MONOTONIC stands still in a suspended machine; the engine's deadlines do not."""
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    daemon = _Daemon(cast(Any, None), cast(Any, None), None, None)
    over = clock.now() - 0.001
    daemon.desired.commit(Change(1, True, {"peer-a": Peer({"id": "peer-a"}, over)}))
    daemon._take_event({"type": "expired", "id": "peer-a", "lateBy": 0.0})
    assert daemon.desired.peers == {}
