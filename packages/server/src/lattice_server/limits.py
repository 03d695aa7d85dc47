"""How much one caller may take: failures that are answered, enrollments that are under way.

In memory and bounded. A restart forgets it, which gives nobody more than one more burst.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address

from lattice_server.problems import ApiProblem

KEYS = 50_000  # that a limiter remembers; the one that was quiet longest is forgotten first
KNOWN_GOOD_SECONDS = 86_400.0
SUSPECTS_AT_ONCE, SUSPECTS_WAITING = 2, 100  # of one source that is over its limit
TOO_MANY_FAILURES = "there were too many attempts with tokens that are not accepted"
HOLDS_NO_MORE = frozenset({"token_expired", "token_revoked", "token_used_up"})
FAILURES = HOLDS_NO_MORE | {"invalid_token", "source_not_permitted"}
AT_ONCE = 16  # enrollments of one token, renewals of one identity
WAITING = 1000  # that wait for their turn behind them
IPV6_SITE = 64  # bits; one site has so many addresses that each may be another


class Buckets:
    """A token bucket for each key.

    Args:
        burst: how many at once.
        per_second: how many come back.
        clock: seconds on a clock that nobody sets.
    """

    def __init__(
        self, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._per_second, self._clock = burst, per_second, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str) -> float:
        """Seconds until there is one again; zero when there is one now. Takes nothing."""
        return max(0.0, (1.0 - self._level(key)) / self._per_second)

    def take(self, key: str) -> None:
        """Take one, as far as there is one."""
        level = max(0.0, self._level(key) - 1.0)
        self._levels[key] = (level, self._clock())
        self._levels.move_to_end(key)
        if len(self._levels) > KEYS:
            self._levels.popitem(last=False)

    def _level(self, key: str) -> float:
        known = self._levels.get(key)
        if known is None:
            return float(self._burst)
        level, at = known
        return min(float(self._burst), level + (self._clock() - at) * self._per_second)


class Lanes:
    """Gives each key a lane of its own: whoever floods waits behind itself, not others behind it.

    Args:
        at_once: how many of one key are under way.
        waiting: how many of one key wait; more are refused.
    """

    def __init__(self, at_once: int = AT_ONCE, waiting: int = WAITING) -> None:
        self._at_once, self._waiting = at_once, waiting
        self._lanes: dict[str, tuple[asyncio.Semaphore, list[int]]] = {}

    @asynccontextmanager
    async def enter(self, key: str) -> AsyncIterator[None]:
        """Take a place in the lane of this key, and leave it at the end.

        Raises:
            ApiProblem: ``too_many_requests`` when too many wait already.
        """
        lane = self._lanes.setdefault(key, (asyncio.Semaphore(self._at_once), [0]))
        semaphore, inside = lane
        if inside[0] >= self._at_once + self._waiting:
            raise too_many(f"{inside[0]} requests with this token are under way", 1.0)
        inside[0] += 1
        try:
            async with semaphore:
                yield
        finally:
            inside[0] -= 1
            if not inside[0]:
                self._lanes.pop(key, None)


class FailureGuard:
    """Slows those down who fail to authenticate again and again, and nobody beside them.

    A token that holds no more is refused unseen after a while. A source that is over its limit is
    still looked at, a few at a time, so that whoever guesses locks nobody out who shares its
    address; who was good before, or got the token from here, does not even notice.

    Args:
        per_minute: failures of one source, or with one token; zero switches it off.
    """

    def __init__(self, per_minute: int) -> None:
        self._on = per_minute > 0
        self._failures = Buckets(max(1, per_minute), max(1, per_minute) / 60)
        self._good: OrderedDict[str, float] = OrderedDict()
        self._lanes = Lanes(SUSPECTS_AT_ONCE, SUSPECTS_WAITING)

    @asynccontextmanager
    async def attempt(self, source: str, hashed: str) -> AsyncIterator[None]:
        """Around one attempt to authenticate, which says by an :class:`ApiProblem` that it failed.

        Args:
            source: the caller's address.
            hashed: hash of what it sent.

        Raises:
            ApiProblem: ``too_many_requests``, also in place of what a suspect's attempt raised.
        """
        if not self._on:
            yield
            return
        key = source_key(source)
        if (wait := self._failures.wait(f"token {hashed}")) > 0:
            raise too_many(TOO_MANY_FAILURES, wait)
        wait = self._failures.wait(f"source {key}")
        suspect = wait > 0 and self._good.get(hashed, 0.0) < time.monotonic()
        try:
            async with self._lanes.enter(key) if suspect else nullcontext():
                yield
        except ApiProblem as problem:
            if problem.code not in FAILURES:
                raise
            self._failed(key, hashed, problem.code)
            if suspect:
                raise too_many(TOO_MANY_FAILURES, wait) from None
            raise
        self.passed(hashed)

    def _failed(self, key: str, hashed: str, code: str) -> None:
        self._failures.take(f"source {key}")
        # Of a token that holds elsewhere, only its owner would suffer.
        if code in HOLDS_NO_MORE:
            self._failures.take(f"token {hashed}")
            self._good.pop(hashed, None)

    def passed(self, hashed: str) -> None:
        """Note a token that is good: it was seen to be, or was made here."""
        if not self._on:
            return
        self._good[hashed] = time.monotonic() + KNOWN_GOOD_SECONDS
        self._good.move_to_end(hashed)
        if len(self._good) > KEYS:
            self._good.popitem(last=False)


@lru_cache(maxsize=4096)
def source_key(address: str) -> str:
    """What counts as one source: an IPv4 address, or the network of an IPv6 site."""
    try:
        known = ip_address(address)
    except ValueError:
        return address
    if isinstance(known, IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(IPv6Network((int(known), IPV6_SITE), strict=False))
    return str(known)


def too_many(what: str, seconds: float) -> ApiProblem:
    """The 429, with the time after which to try again."""
    wait = max(1, round(seconds + 0.5))
    return ApiProblem(
        "too_many_requests",
        f"{what}; try again in {wait} s",
        headers={"Retry-After": str(wait)},
    )
