"""What requests hold of the server's memory before anybody knows who sends them.

Pure accounting, by source: whoever sends more than a share is refused, and when all is taken, the
source that holds the most gives way, not whoever comes next.
"""

from __future__ import annotations

import asyncio
import contextlib

from lattice_server.problems import ApiProblem

# As much as a connection may have unread anyway: such a body costs its connection, and the gate
# counts those.
SMALL_BODY_BYTES = 64 * 1024
# Of one source, in bodies that are larger.
SOURCE_BYTES = 8 * 1024 * 1024
# Of all requests that are read or served at a time.
MAX_HELD_BYTES = 128 * 1024 * 1024


class Holding:
    """The bytes of all requests that are under way, by source."""

    def __init__(self) -> None:
        self.bytes = 0
        self._sources: dict[str, _Source] = {}

    def open(self, source: str) -> Held:
        """An account for one request.

        Args:
            source: whose it is (:func:`lattice_server.limits.source_key`).
        """
        return Held(self, source)

    def source(self, name: str) -> _Source:
        """What a source holds; it is known from its first byte to its last."""
        known = self._sources.get(name)
        if known is None:
            known = self._sources[name] = _Source()
        return known

    def forget(self, name: str) -> None:
        """Nothing of it is left."""
        self._sources.pop(name, None)

    def make_room(self) -> bool:
        """Have those who hold the most give way until all fit; whether they do."""
        while self.bytes > MAX_HELD_BYTES:
            waiting = [source for source in self._sources.values() if source.arriving]
            if not waiting:
                return False
            heaviest = max(waiting, key=lambda source: source.bytes)
            max(heaviest.arriving, key=lambda held: held.bytes).give_way()
        return True


class _Source:
    """The requests of one source that hold something."""

    def __init__(self) -> None:
        self.bytes = 0
        self.large = 0
        self.requests = 0
        self.arriving: set[Held] = set()


class Held:
    """What one request holds."""

    __slots__ = ("_arrival", "_holding", "_name", "_source", "bytes", "gave_way")

    def __init__(self, holding: Holding, source: str) -> None:
        self._holding, self._name = holding, source
        self._source: _Source | None = None
        self._arrival: asyncio.Timeout | None = None
        self.bytes = 0
        self.gave_way = False

    def arrives(self, arrival: asyncio.Timeout) -> None:
        """The body is on its way; ``arrival`` is rescheduled should this have to give way."""
        self._arrival = arrival

    def add(self, count: int) -> None:
        """Take some.

        Raises:
            ApiProblem: ``overloaded``.
        """
        if self.gave_way:
            raise gave_way()
        if self._source is None:
            self._source = self._holding.source(self._name)
            self._source.requests += 1
            if self._arrival is not None:
                self._source.arriving.add(self)
        source, before = self._source, self._large
        self.bytes += count
        source.bytes += count
        source.large += self._large - before
        self._holding.bytes += count
        if self._large and source.large > SOURCE_BYTES:
            raise _overloaded("this address has sent as much as it may have under way")
        if self._holding.bytes > MAX_HELD_BYTES:
            fits = self._holding.make_room()
            if self.gave_way:
                raise gave_way()
            if self._large and not fits:
                raise _overloaded("the server holds as many requests as it can")

    def arrived(self) -> None:
        """All of it is here, and is served: it gives way to nobody any more."""
        self._arrival = None
        if self._source is not None:
            self._source.arriving.discard(self)

    def give_way(self) -> None:
        """Release it, and have its reader find out."""
        self.gave_way = True
        if self._arrival is not None:
            with contextlib.suppress(RuntimeError):  # its time is over at this moment anyway
                self._arrival.reschedule(asyncio.get_running_loop().time())
        self.release()

    def release(self) -> None:
        """Give all of it back."""
        if self._source is None:
            return
        source, self._source = self._source, None
        source.arriving.discard(self)
        source.bytes -= self.bytes
        source.large -= self._large
        source.requests -= 1
        self._holding.bytes -= self.bytes
        self.bytes = 0
        if not source.requests:
            self._holding.forget(self._name)

    @property
    def _large(self) -> int:
        """The part of it that counts towards the source's share."""
        return self.bytes if self.bytes > SMALL_BODY_BYTES else 0


def gave_way() -> ApiProblem:
    """What a request is told that had to make room."""
    return _overloaded("the server holds as many requests as it can, and most are of this address")


def _overloaded(why: str) -> ApiProblem:
    return ApiProblem("overloaded", f"{why}; try again later", headers={"Retry-After": "5"})
