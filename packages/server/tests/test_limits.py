"""How much one caller may take: what is counted, what comes back, who waits behind whom."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_server.connections import Gate
from lattice_server.limits import Buckets, FailureGuard, Lanes, source_key
from lattice_server.problems import ApiProblem


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    st.integers(1, 5),
    st.floats(0.1, 10),
    st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=40),
)
def test_bucket_never_gives_more_than_its_burst_and_its_rate(
    burst: int, rate: float, steps: list[tuple[float, bool]]
) -> None:
    clock = Clock()
    buckets, began, given_out = Buckets(burst, rate, clock), clock.now, 0
    for pause, other in steps:
        clock.now += pause
        if other:
            buckets.take("other")
        elif buckets.wait("one") == 0:
            buckets.take("one")
            given_out += 1
        else:
            # It says when there is one again, and then there is.
            clock.now += buckets.wait("one") + 1e-6
            assert buckets.wait("one") == 0
        assert given_out <= burst + (clock.now - began) * rate + 1e-3


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lattice_server.limits.KEYS", 10)
    buckets = Buckets(1, 0.001)
    for number in range(100):
        buckets.take(f"source {number}")
    assert len(buckets._levels) == 10
    assert buckets.wait("source 99") > 0
    assert buckets.wait("source 0") == 0


def failures(guard: FailureGuard, source: str, count: int, known: str | None = None) -> None:
    for number in range(count):
        hashed = known or f"guess {number}"
        guard.check(source, hashed)
        guard.failed(source, hashed, known=known is not None)


def test_source_that_guesses_is_stopped_and_others_are_not() -> None:
    guard = FailureGuard(5)
    guard.passed("good")
    failures(guard, "192.0.2.1", 5)
    with pytest.raises(ApiProblem) as stopped:
        guard.check("192.0.2.1", "guess 6")
    assert (stopped.value.status, stopped.value.code) == (429, "too_many_requests")
    assert int(stopped.value.headers["Retry-After"]) >= 1
    guard.check("192.0.2.2", "guess 6")
    guard.check("192.0.2.1", "good")  # known from before, behind the same address
    with pytest.raises(ApiProblem):
        guard.check("192.0.2.1", "good, but never seen")


def test_token_that_holds_no_more_is_stopped_wherever_it_is_tried() -> None:
    guard = FailureGuard(5)
    guard.passed("revoked")
    for number in range(5):
        failures(guard, f"192.0.2.{number}", 1, known="revoked")
    with pytest.raises(ApiProblem):
        guard.check("198.51.100.1", "revoked")
    guard.check("198.51.100.1", "another")


def test_guard_can_be_switched_off() -> None:
    guard = FailureGuard(0)
    failures(guard, "192.0.2.1", 100)
    guard.check("192.0.2.1", "x")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("", "192.0.2.1", False),
    ],
)
def test_one_site_is_one_source(one: str, other: str, same: bool) -> None:
    assert (source_key(one) == source_key(other)) is same


@pytest.mark.anyio
async def test_lane_holds_its_own_up_and_nobody_else() -> None:
    lanes, inside, most = Lanes(at_once=2, waiting=3), 0, 0
    go = asyncio.Event()

    async def work(key: str) -> None:
        nonlocal inside, most
        async with lanes.enter(key):
            if key == "flood":
                inside += 1
                most = max(most, inside)
            await go.wait()
            if key == "flood":
                inside -= 1

    flood = [asyncio.create_task(work("flood")) for _ in range(8)]
    await asyncio.sleep(0)
    other = asyncio.create_task(work("other"))
    await asyncio.sleep(0)
    assert (inside, most) == (2, 2)
    go.set()
    await other
    results = await asyncio.gather(*flood, return_exceptions=True)
    refused = [r for r in results if isinstance(r, ApiProblem)]
    assert (len(refused), {r.code for r in refused}) == (3, {"too_many_requests"})
    assert most == 2
    assert lanes._lanes == {}


@pytest.mark.anyio
async def test_lane_is_left_on_cancellation_and_failure() -> None:
    lanes = Lanes(at_once=1, waiting=1)
    for error in (asyncio.CancelledError(), ValueError()):
        with pytest.raises(type(error)):
            async with lanes.enter("one"):
                raise error
    async with lanes.enter("one"):
        waiting = asyncio.create_task(lanes.enter("one").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert lanes._lanes == {}


@given(
    st.lists(st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.2", "192.0.2.1"]), st.booleans())),
    st.integers(1, 6),
    st.integers(1, 3),
)
def test_gate_counts_exactly(steps: list[tuple[str, bool]], total: int, own: int) -> None:
    gate, inside = Gate(total, own, ["192.0.2.0/24"]), []
    for address, comes in steps:
        if comes:
            exempt = address.startswith("192.0.2.")
            room = len(inside) < total and (exempt or inside.count(address) < own)
            assert gate.enter(address) is room
            if room:
                inside.append(address)
        elif address in inside:
            inside.remove(address)
            gate.leave(address)
    for address in inside:
        gate.leave(address)
    assert (gate._count, dict(gate._open)) == (0, {})
