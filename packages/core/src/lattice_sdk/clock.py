"""Time left, measured on a clock that nobody can set, from the server's own dates.

The wall clock of this machine is never asked: it may be wrong by a day.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from collections.abc import Mapping

TIME_HEADER = "Lattice-Time"
# ``Date`` has whole seconds, cut off (RFC 9110, 5.6.7): the server may be this much further.
DATE_RESOLUTION = 1.0

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Seconds on the monotonic clock, which on Linux counts a suspended machine's time too."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
else:
    now = time.monotonic


class ServerClock:
    """Translates the server's dates into this machine's monotonic clock.

    A date of an answer is placed at the moment when the answer came, so a deadline is late by at
    most the way of one packet; the gateway's kernel decides anyway.
    """

    def __init__(self) -> None:
        self._offset: float | None = None

    @property
    def known(self) -> bool:
        """Whether an answer has told the server's time."""
        return self._offset is not None

    def observe(self, headers: Mapping[str, str], received: float) -> None:
        """Take the server's time from an answer's headers.

        Args:
            headers: ``Lattice-Time`` (RFC 3339), else ``Date``; case is the mapping's business.
            received: :func:`now` when the answer came.
        """
        stamp = read_time(headers)
        if stamp is not None:
            self._offset = stamp - received

    def deadline(self, when: datetime) -> float | None:
        """The moment on the monotonic clock, ``None`` while the server's time is unknown."""
        return None if self._offset is None else when.timestamp() - self._offset

    def date(self, moment: float) -> datetime | None:
        """The server's date at a moment of the monotonic clock."""
        if self._offset is None:
            return None
        return datetime.fromtimestamp(moment + self._offset, UTC)


def read_time(headers: Mapping[str, str]) -> float | None:
    """The server's time, in seconds since the epoch, at latest; ``None`` when not told."""
    exact, coarse = headers.get(TIME_HEADER), headers.get("Date")
    if exact:
        try:
            stamp = datetime.fromisoformat(exact)
        except ValueError:
            stamp = None
        if stamp is not None and stamp.tzinfo is not None:
            return stamp.timestamp()
    if coarse:
        from email.utils import parsedate_to_datetime

        try:
            return parsedate_to_datetime(coarse).timestamp() + DATE_RESOLUTION
        except (ValueError, TypeError, OverflowError):
            return None
    return None
