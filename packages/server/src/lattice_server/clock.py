"""The control plane's time: whole milliseconds since the epoch, as the database keeps them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_MILLISECOND = timedelta(milliseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def to_ms(span: timedelta) -> int:
    """A duration in whole milliseconds, rounded down."""
    return span // _MILLISECOND


def to_time(milliseconds: int) -> datetime:
    """An instant of the database as a UTC datetime, exact to the millisecond."""
    return _EPOCH + milliseconds * _MILLISECOND


def rfc3339(milliseconds: int) -> str:
    """An instant as the wire writes it: ``2026-05-06T11:00:00.000Z``."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    # Under load, thousands of answers speak of the same few seconds.
    return to_time(seconds * 1000).replace(tzinfo=None).isoformat(timespec="seconds")
