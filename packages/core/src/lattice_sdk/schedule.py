"""The pure part of an identity's life: which state follows which, and when to renew.

Times are seconds. Randomness comes in as an argument, ``jitter`` in [-1, 1].
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where an identity is in its life."""

    NEW = "new"
    ENROLLING = "enrolling"
    ACTIVE = "active"
    RENEWING = "renewing"
    EXPIRED = "expired"
    CLOSING = "closing"
    CLOSED = "closed"


_NEXT: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.ENROLLING, State.CLOSING}),
    State.ENROLLING: frozenset({State.ACTIVE, State.EXPIRED, State.CLOSING}),
    State.ACTIVE: frozenset({State.RENEWING, State.EXPIRED, State.CLOSING}),
    State.RENEWING: frozenset({State.ACTIVE, State.EXPIRED, State.CLOSING}),
    State.EXPIRED: frozenset({State.CLOSING}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}

RENEW_JITTER = 0.1  # of the time until renewal, so that a fleet does not renew at once
LAST_RENEWAL = 0.9  # of the remaining life: later there is no time for a second attempt
BACKOFF_FIRST = 0.5
BACKOFF_MOST = 60.0
BACKOFF_SHARE = 0.25  # of the remaining life, so attempts get denser as expiry nears
BACKOFF_LEAST = 0.05
MEND_FIRST = 1.0  # seconds between the first attempts to rebuild a tunnel
MEND_MOST = 30.0
RETRY_AFTER_SHARE = 0.8  # a server's wish is followed as far as it leaves time for one attempt


def follows(state: State, target: State) -> bool:
    """Whether an identity may go from one state to the other."""
    return target in _NEXT[state]


def renew_delay(remaining: float, until_renew_after: float | None, jitter: float) -> float:
    """Seconds until the first attempt to renew.

    Args:
        remaining: life left.
        until_renew_after: time until the server's ``renewAfter``; half of the life when not told.
        jitter: in [-1, 1].
    """
    planned = remaining / 2 if until_renew_after is None else until_renew_after
    return max(0.0, min(planned * (1 + RENEW_JITTER * jitter), remaining * LAST_RENEWAL))


def retry_delay(
    attempt: int, remaining: float, jitter: float, retry_after: float | None = None
) -> float | None:
    """Seconds until the next attempt after failed ones, ``None`` when there is no time for one.

    Args:
        attempt: failed attempts so far, from 1.
        remaining: life left.
        jitter: in [-1, 1].
        retry_after: the server's wish, if it has told one.
    """
    if remaining <= BACKOFF_LEAST:
        return None
    most = min(BACKOFF_MOST, remaining * BACKOFF_SHARE)
    delay = min(BACKOFF_FIRST * 2.0 ** min(attempt - 1, 16), most) * (1 + 0.25 * jitter)
    if retry_after is not None:
        delay = max(delay, min(retry_after, remaining * RETRY_AFTER_SHARE))
    return max(BACKOFF_LEAST, delay)


def mend_delay(attempts: int) -> float:
    """Seconds from one attempt to rebuild a tunnel to the next.

    Args:
        attempts: attempts so far.
    """
    return min(MEND_FIRST * 2.0 ** min(attempts, 16), MEND_MOST)


def may_be_renewed(expires: float, most: float | None) -> bool:
    """Whether a renewal can still move the deadline.

    Args:
        expires: the deadline.
        most: the latest deadline that the server will grant, if it has told one.
    """
    return most is None or most - expires > 0.001
