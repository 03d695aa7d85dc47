"""What an ``allow`` list may name, and what a token permits of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Literal

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
# The last label begins with a letter: nothing that some resolver takes for an address is a name.
_NAME = re.compile(rf"({_LABEL}\.)*[a-z]([a-z0-9-]{{0,61}}[a-z0-9])?")
NAME_LENGTH = 253
ANYTHING = "*"

Kind = Literal["address", "network", "name", "pattern"]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a rule leads to, in one spelling."""

    kind: Kind
    text: str

    @property
    def network(self) -> IPv4Network:
        """Of an address or a network."""
        return IPv4Network(self.text)


def parse(text: str) -> Destination:
    """Read the ``to`` of a rule: an IPv4 address, a CIDR, a host name or ``*.`` and a host name.

    Raises:
        ValueError: it is none of them; the text says what is wrong.
    """
    lowered = text.lower().removesuffix(".")
    try:
        return Destination("address", str(IPv4Address(lowered)))
    except ValueError:
        pass
    if "/" in lowered:
        try:
            network = IPv4Network(lowered)
        except ValueError:
            raise ValueError("not an IPv4 network such as 10.0.7.0/24") from None
        if network.prefixlen == 32:
            return Destination("address", str(network.network_address))
        return Destination("network", str(network))
    name = lowered.removeprefix("*.")
    if len(name) > NAME_LENGTH or not _NAME.fullmatch(name):
        raise ValueError("not an IPv4 address, an IPv4 network or a host name")
    if name == "localhost":
        raise ValueError("localhost is the agent's own machine: name a tool service instead")
    return Destination("name" if name == lowered else "pattern", lowered)


# Nothing that a router forwards to, as IANA's registry of special-purpose addresses has it.
_NOT_FORWARDED = tuple(
    map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))
)
WIDEST_NETWORK = 8


def check_network(text: str) -> str:
    """A network that a connector may advertise.

    Raises:
        ValueError: it is none, or none that can be routed to.
    """
    to = parse(text)
    if to.kind not in ("address", "network"):
        raise ValueError("not an IPv4 network such as 10.0.7.0/24")
    network = to.network
    if network.prefixlen < WIDEST_NETWORK or any(map(network.overlaps, _NOT_FORWARDED)):
        raise ValueError(
            f"wider than /{WIDEST_NETWORK}, or loopback, link-local, multicast or reserved"
        )
    return str(network)


@dataclass(frozen=True, slots=True)
class Permit:
    """What a token permits: a destination, or ``*`` for all host names. ``None`` is any."""

    to: str
    port: int | None = None
    protocol: str | None = None

    def covers(self, to: Destination, port: int, protocol: str) -> bool:
        """Whether a rule is no wider than this."""
        if self.port not in (None, port) or self.protocol not in (None, protocol):
            return False
        if self.to == ANYTHING:
            return to.kind in ("name", "pattern")
        mine = parse(self.to)
        if to.kind in ("address", "network"):
            return mine.kind in ("address", "network") and to.network.subnet_of(mine.network)
        if mine.kind == "pattern":
            # *.example.org covers what is below example.org, and not example.org itself.
            return to.text.removeprefix("*").endswith(mine.text[1:])
        return mine == to


def permits_of(rules: Iterable[Mapping[str, Any]]) -> list[Permit]:
    """The permits of a token's record."""
    return [Permit(rule["to"], rule.get("port"), rule.get("protocol")) for rule in rules]
