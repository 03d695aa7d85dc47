"""The pool of overlay addresses: which are free, in constant time for each step.

The database is the truth (``addresses``, one row for each address that is held or rests); this is
its complement in memory. Memory grows with the addresses in use, not with the size of the overlay.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network


class AddressPool:
    """A set of free host addresses from which a random one is taken.

    A virtual array holds the free addresses first; what was moved is in two small maps (a sparse
    Fisher-Yates shuffle). Network, broadcast and gateway address never come out.
    """

    def __init__(self, overlay: IPv4Network, used: Iterable[str] = ()) -> None:
        self._first = int(overlay.network_address) + 2
        self._size = overlay.num_addresses - 3
        self._value: dict[int, int] = {}
        self._slot: dict[int, int] = {}
        self._free = self._size
        for address in used:
            self.discard(address)

    def __len__(self) -> int:
        return self._free

    def __contains__(self, address: str) -> bool:
        return self._is_free(_number(address) - self._first)

    def take(self) -> str | None:
        """Take a random free address; ``None`` when there is none."""
        if not self._free:
            return None
        slot = random.randrange(self._free)  # noqa: S311 - spread, not secrecy
        value = self._value.get(slot, slot)
        self._swap(slot, self._free - 1)
        self._free -= 1
        return str(IPv4Address(value + self._first))

    def discard(self, address: str) -> None:
        """Take this address out, if it is free."""
        value = _number(address) - self._first
        if self._is_free(value):
            self._swap(self._slot.get(value, value), self._free - 1)
            self._free -= 1

    def release(self, address: str) -> None:
        """Give an address back. One that is free already, or not of the overlay, is left alone."""
        value = _number(address) - self._first
        if not 0 <= value < self._size or self._is_free(value):
            return
        self._swap(self._slot.get(value, value), self._free)
        self._free += 1

    def _is_free(self, value: int) -> bool:
        return 0 <= value < self._size and self._slot.get(value, value) < self._free

    def _swap(self, one: int, other: int) -> None:
        first, second = self._value.get(one, one), self._value.get(other, other)
        self._put(one, second)
        self._put(other, first)

    def _put(self, slot: int, value: int) -> None:
        if slot == value:
            self._value.pop(slot, None)
            self._slot.pop(value, None)
        else:
            self._value[slot], self._slot[value] = value, slot


def _number(address: str) -> int:
    # A start asks this for every identity that lives: ten times as fast as IPv4Address.
    return int.from_bytes(socket.inet_pton(socket.AF_INET, address), "big")
