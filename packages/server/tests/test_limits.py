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


async def attempt(guard: FailureGuard, source: str, hashed: str, code: str | None) -> str:
    """Try; ``code`` is how it fails, if it does. What the caller is told."""
    try:
        async with guard.attempt(source, hashed):
            if code is not None:
                raise ApiProblem(code, "no")
    except ApiProblem as told:
        return told.code
    return "passed"


async def guess(guard: FailureGuard, source: str, count: int) -> set[str]:
    return {await attempt(guard, source, f"guess {n}", "invalid_token") for n in range(count)}


@pytest.mark.anyio
async def test_source_that_guesses_is_slowed_down_and_nobody_who_has_a_token_is() -> None:
    guard = FailureGuard(5)
    assert await guess(guard, "192.0.2.1", 5) == {"invalid_token"}
    assert await guess(guard, "192.0.2.1", 50) == {"too_many_requests"}
    assert await guess(guard, "192.0.2.2", 1) == {"invalid_token"}
    for hashed in ("known from before", "never seen"):
        # Behind the same address translation.
        assert await attempt(guard, "192.0.2.1", hashed, None) == "passed"


@pytest.mark.anyio
async def test_suspects_are_looked_at_a_few_at_a_time_and_known_ones_at_once() -> None:
    guard, inside = FailureGuard(5), 0
    await attempt(guard, "192.0.2.1", "good", None)
    await guess(guard, "192.0.2.1", 10)
    go = asyncio.Event()

    async def slow(number: int) -> None:
        nonlocal inside
        async with guard.attempt("192.0.2.1", f"guess {number}"):
            inside += 1
            await go.wait()

    crowd = [asyncio.create_task(slow(number)) for number in range(200)]
    await asyncio.sleep(0)
    assert await attempt(guard, "192.0.2.1", "good", None) == "passed"
    assert inside == 2
    go.set()
    results = await asyncio.gather(*crowd, return_exceptions=True)
    assert sum(isinstance(result, ApiProblem) for result in results) == 200 - 102


@pytest.mark.anyio
async def test_token_that_holds_no_more_is_stopped_wherever_it_is_tried() -> None:
    guard = FailureGuard(5)
    await attempt(guard, "192.0.2.0", "revoked", None)
    for number in range(5):
        source = f"192.0.2.{number}"
        assert await attempt(guard, source, "revoked", "token_revoked") == "token_revoked"
    assert await attempt(guard, "198.51.100.1", "revoked", "token_revoked") == "too_many_requests"
    assert await attempt(guard, "198.51.100.1", "another", None) == "passed"


@pytest.mark.anyio
async def test_stolen_token_that_is_tried_elsewhere_is_not_taken_from_its_owner() -> None:
    guard = FailureGuard(5)
    for _ in range(50):
        await attempt(guard, "198.51.100.1", "stolen", "source_not_permitted")
    assert await attempt(guard, "192.0.2.1", "stolen", None) == "passed"


@pytest.mark.anyio
async def test_other_refusals_are_no_failures_to_authenticate() -> None:
    guard = FailureGuard(5)
    for _ in range(50):
        assert await attempt(guard, "192.0.2.1", "good", "forbidden") == "forbidden"
    assert await guess(guard, "192.0.2.1", 1) == {"invalid_token"}


@pytest.mark.anyio
async def test_guard_can_be_switched_off() -> None:
    assert await guess(FailureGuard(0), "192.0.2.1", 100) == {"invalid_token"}


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
