"""The renewal schedule, by its properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_sdk.schedule import (
    BACKOFF_LEAST,
    BACKOFF_MOST,
    MEND_FIRST,
    MEND_MOST,
    State,
    follows,
    may_be_renewed,
    mend_delay,
    renew_delay,
    retry_delay,
)

life = st.floats(0.2, 1e7)
jitter = st.floats(-1, 1)


@given(life, jitter)
def test_first_renewal_is_around_half_of_the_life(remaining: float, jitter: float) -> None:
    delay = renew_delay(remaining, None, jitter)
    assert remaining * 0.45 <= delay * 1.0000001
    assert delay <= remaining * 0.55 * 1.0000001


@given(life, st.floats(-10, 1e8), jitter)
def test_renewal_is_in_the_identitys_life_whatever_the_server_says(
    remaining: float, renew_after: float, jitter: float
) -> None:
    assert 0 <= renew_delay(remaining, renew_after, jitter) < remaining


@given(st.integers(1, 1000), life, jitter, st.one_of(st.none(), st.floats(0, 1e9)))
def test_each_retry_comes_before_expiry(
    attempt: int, remaining: float, jitter: float, retry_after: float | None
) -> None:
    delay = retry_delay(attempt, remaining, jitter, retry_after)
    assert delay is not None
    assert BACKOFF_LEAST <= delay < remaining


@given(st.integers(1, 1000), life, jitter)
def test_backoff_never_exceeds_its_bound(attempt: int, remaining: float, jitter: float) -> None:
    delay = retry_delay(attempt, remaining, jitter)
    assert delay is not None
    assert delay <= BACKOFF_MOST * 1.25


@given(st.integers(0, 100_000))
def test_a_tunnel_is_rebuilt_less_and_less_often_and_goes_on_to_be(attempts: int) -> None:
    assert mend_delay(0) == MEND_FIRST
    assert mend_delay(attempts + 1) == min(2 * mend_delay(attempts), MEND_MOST)


@given(st.integers(1, 50), st.floats(100, 1e6), st.floats(1.5, 100))
def test_attempts_get_denser_as_expiry_nears(attempt: int, remaining: float, factor: float) -> None:
    near, far = retry_delay(attempt, remaining / factor, 0), retry_delay(attempt, remaining, 0)
    assert near is not None
    assert far is not None
    assert near <= far


@given(st.integers(1, 20), st.floats(10, 1e6), st.floats(1, 5))
def test_servers_wish_is_followed_where_there_is_time(
    attempt: int, remaining: float, wish: float
) -> None:
    delay = retry_delay(attempt, remaining, 0, wish)
    assert delay is not None
    assert delay >= min(wish, remaining * 0.8)


@pytest.mark.parametrize("remaining", [0.0, BACKOFF_LEAST, -5.0])
def test_no_attempt_without_time_for_it(remaining: float) -> None:
    assert retry_delay(1, remaining, 0) is None


def test_closed_is_the_end_and_expired_never_lives_again() -> None:
    assert not any(follows(State.CLOSED, state) for state in State)
    assert {state for state in State if follows(State.EXPIRED, state)} == {State.CLOSING}


def test_last_renewal_is_not_asked_for_again() -> None:
    assert may_be_renewed(10.0, None)
    assert may_be_renewed(10.0, 20.0)
    assert not may_be_renewed(10.0, 10.0)
