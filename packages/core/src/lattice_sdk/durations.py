"""Durations as they travel on the wire: Go-style strings (``90s``, ``1h``, ``1h30m``)."""

from __future__ import annotations

import re
from datetime import timedelta

# The units of Go's time.ParseDuration (https://pkg.go.dev/time#ParseDuration), in seconds.
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_TERM = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|h|m|s)")


def parse_duration(text: str) -> timedelta:
    """Read a Go-style duration.

    Args:
        text: for example ``"90s"``, ``"1h30m"``, ``"1.5h"`` or ``"250ms"``. A sign is accepted by
            Go but means nothing for a lifetime, so it is refused here.

    Raises:
        ValueError: when the text is not such a duration, or longer than :class:`timedelta` holds.
    """
    position, seconds = 0, 0.0
    while position < len(text) and (term := _TERM.match(text, position)):
        seconds += float(term[1]) * _UNIT_SECONDS[term[2]]
        position = term.end()
    if position == 0 or position != len(text):
        raise ValueError(
            f"{text[:40]!r} is not a duration: write numbers with units, "
            "such as 90s, 15m, 1h or 1h30m"
        )
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise ValueError(f"{text[:40]!r} is longer than any duration this program holds") from None


def format_duration(value: timedelta) -> str:
    """Write a duration in the shortest Go-style form: whole hours, minutes, seconds, milliseconds.

    What is finer than a millisecond is cut off.

    Raises:
        ValueError: when the duration is negative.
    """
    milliseconds = value // timedelta(milliseconds=1)
    if milliseconds < 0:
        raise ValueError("a duration on the wire cannot be negative")
    hours, milliseconds = divmod(milliseconds, 3_600_000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    seconds, milliseconds = divmod(milliseconds, 1000)
    terms = ((hours, "h"), (minutes, "m"), (seconds, "s"), (milliseconds, "ms"))
    return "".join(f"{number}{unit}" for number, unit in terms if number) or "0s"
