"""What a delegation may carry: never more than the agent that delegates has. Pure.

Two things hold a sub-agent down. What it asks for is compared with its parent when it is delegated
and when it enrolls (:func:`preset_within`, :meth:`Lines.lacks`), so that a refusal says why. And
its grants are cut to its parent's each time they are compiled (:meth:`Lines.bounded`): a parent
that loses a service, by whatever road, has lost it for all that came from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from lattice_server.policy import ANY_PORT, Grant
from lattice_server.presets import ALLOW, BUILT_IN, Presets


def preset_within(child: str, parent: str, presets: Presets = BUILT_IN) -> bool:
    """Whether a preset is no wider than another, word by word.

    A list of its own (the word ``allow``) is no wider than anything: its rules are compared one by
    one, by :class:`Lines`. An unknown preset is within nothing.
    """
    if child not in presets or parent not in presets:
        return False
    one, other = presets[child], presets[parent]
    return one.egress - {ALLOW} <= other.egress and one.ingress <= other.ingress


class Limits:
    """Destinations with protocol and port, of grants or of an allow list, and what they cover.

    An address covers itself, a network what is in it, a name itself, a pattern ``*.DOMAIN`` the
    names and patterns below it, and ``any`` of an address all of its protocols and ports. Looking
    one up takes no longer for a thousand than for one.

    Args:
        limits: destination, protocol and port of each.
    """

    def __init__(self, limits: Iterable[tuple[str, str, int]]) -> None:
        self._same: set[tuple[str, str, int]] = set()
        self._below: set[tuple[str, str, int]] = set()
        # By protocol and port, then by version and length of prefix.
        self._networks: dict[tuple[str, int], dict[tuple[int, int], set[int]]] = {}
        for to, protocol, port in limits:
            text = _spelled(to)
            self._same.add((text, protocol, port))
            if text.startswith("*."):
                self._below.add((text[2:], protocol, port))
            elif "/" in text and (network := _network(text)) is not None:
                sizes = self._networks.setdefault((protocol, port), {})
                size = (network.version, network.prefixlen)
                sizes.setdefault(size, set()).add(_prefix(network, network.prefixlen))

    @classmethod
    def of_rules(cls, rules: Iterable[Mapping[str, Any]]) -> Limits:
        """Those of an allow list."""
        return cls((rule["to"], rule["protocol"], rule["port"]) for rule in rules)

    @classmethod
    def of_grants(cls, grants: Iterable[Grant]) -> Limits:
        """Those of grants."""
        return cls((grant.to, grant.protocol, grant.port) for grant in grants)

    def cover(self, to: str, protocol: str, port: int) -> bool:
        """Whether one of them covers this."""
        text = _spelled(to)
        if (text, protocol, port) in self._same or (text, "any", ANY_PORT) in self._same:
            return True
        sizes = self._networks.get((protocol, port), {})
        if not sizes and not self._below:
            return False
        if (network := _network(text)) is not None:
            return any(
                version == network.version
                and length <= network.prefixlen
                and _prefix(network, length) in known
                for (version, length), known in sizes.items()
            )
        while "." in text:
            text = text.partition(".")[2]
            if (text, protocol, port) in self._below:
                return True
        return False


def _spelled(to: str) -> str:
    return to.lower().rstrip(".")


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _prefix(network: IPv4Network | IPv6Network, length: int) -> int:
    return int(network.network_address) >> (network.max_prefixlen - length)


def allow_within(rules: Iterable[Mapping[str, Any]], ceiling: Iterable[Mapping[str, Any]]) -> bool:
    """Whether each rule of an allow list is covered by one rule of another."""
    limits = Limits.of_rules(ceiling)
    return all(limits.cover(rule["to"], rule["protocol"], rule["port"]) for rule in rules)


@dataclass(frozen=True, slots=True)
class Kin:
    """An agent of a line of delegations.

    Attributes:
        address: its own.
        parent: who delegated to it.
        grants: those of its own preset.
        asked: its allow list, where the preset takes one; a host name's rule has its ``address``.
    """

    address: str
    parent: str | None
    grants: tuple[Grant, ...]
    asked: tuple[Mapping[str, Any], ...] = ()


class Lines:
    """Lines of delegations, and what is left to each agent by those that it descends from.

    Nobody has a grant to itself, yet a sub-agent may call back those that it comes from, where
    both presets say so: a grant to an ancestor counts as covered by that ancestor. And a host name
    counts as covered where a host name or a pattern of the ancestor's list covers it, whether or
    not it has asked for that very name itself. The host name of a tool service is none: it is the
    service's address that has to be covered.

    Args:
        kin: agents by id, each with all its ancestors. Where one is missing, nothing is granted.
    """

    def __init__(self, kin: Mapping[str, Kin]) -> None:
        self._kin = kin
        self._left: dict[str, tuple[Grant, ...]] = {}
        self._severed: set[str] = set()  # whose line has a gap
        self._limits: dict[str, Limits] = {}
        self._names: dict[str, Limits] = {}

    def bounded(self, who: str) -> tuple[Grant, ...]:
        """The grants of an agent, cut to what is left to each agent that it descends from."""
        line: list[str] = []
        at: str | None = who
        while at is not None and at not in self._left and at not in self._severed:
            line.append(at)
            at = self._kin[at].parent if at in self._kin else None
        for one in reversed(line):
            parent = self._kin[one].parent if one in self._kin else None
            if one not in self._kin or parent in self._severed:
                self._severed.add(one)
            else:
                self._left[one] = self._cut(self._kin[one])
        return self._left.get(who, ())

    def lacks(self, parent: str, asked: Iterable[Wish]) -> list[Wish]:
        """What of these an agent does not have, so that it cannot delegate it.

        Args:
            parent: the agent.
            asked: by a sub-agent.
        """
        wishes = list(asked)
        self.bounded(parent)
        if parent in self._severed:
            return wishes
        rules = tuple({**wish.rule, "address": wish.grant.to} for wish in wishes if wish.named)
        child = Kin("", parent, tuple({wish.grant: None for wish in wishes}), rules)
        kept = set(self._cut(child))
        return [wish for wish in wishes if wish.grant not in kept]

    def first_of(self, who: str) -> str | None:
        """The address of the agent that a line begins with; ``None`` where it is this one."""
        at = who
        while (parent := self._kin[at].parent) is not None and parent in self._kin:
            at = parent
        return self._kin[at].address if at != who else None

    def _cut(self, one: Kin) -> tuple[Grant, ...]:
        """An agent's grants, cut to what is left to its ancestors, which is known."""
        named = {
            Grant(rule["address"], rule["protocol"], rule["port"]): rule
            for rule in one.asked
            if "address" in rule
        }
        kept: set[Grant] = set()
        asked = one.grants
        at = one.parent
        while at is not None and asked:
            above, limits = self._kin[at], self._limits_of(at)
            # What an ancestor still has, all of its own have.
            covered = {g for g in asked if limits.cover(g.to, g.protocol, g.port)}
            kept |= covered
            asked = tuple(
                grant
                for grant in asked
                if grant not in covered
                and (grant.to == above.address or self._covers_name(at, named.get(grant)))
            )
            at = above.parent
        kept.update(asked)
        return tuple(grant for grant in one.grants if grant in kept)

    def _limits_of(self, who: str) -> Limits:
        if who not in self._limits:
            self._limits[who] = Limits.of_grants(self._left[who])
        return self._limits[who]

    def _covers_name(self, who: str, rule: Mapping[str, Any] | None) -> bool:
        if rule is None:
            return False
        if who not in self._names:
            self._names[who] = Limits.of_rules(
                limit
                for limit in self._kin[who].asked
                if "address" in limit or limit["to"].startswith("*.")
            )
        return self._names[who].cover(rule["to"], rule["protocol"], rule["port"])


@dataclass(frozen=True, slots=True)
class Wish:
    """What a rule of an allow list asks for.

    Attributes:
        rule: the rule.
        grant: what is to come of it; of a host name or pattern, with that as its destination.
        named: whether it is a host name or a pattern, and none of a tool service.
    """

    rule: Mapping[str, Any]
    grant: Grant
    named: bool = False
