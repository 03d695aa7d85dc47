"""What a delegation may carry: never more than the agent that delegates has. Pure.

Two things hold a sub-agent down. What it asks for is compared with its parent when it is delegated
and when it enrolls (:func:`preset_within`, :func:`allow_within`), so that a refusal says why. And
its grants are cut to its parent's each time they are compiled (:func:`bounded`): a parent that
loses a service, by whatever road, has lost it for all that came from it.
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
    one, by :func:`allow_within` or :func:`bounded`. An unknown preset is within nothing.
    """
    if child not in presets or parent not in presets:
        return False
    one, other = presets[child], presets[parent]
    return one.egress - {ALLOW} <= other.egress and one.ingress <= other.ingress


def allow_within(rules: Iterable[Mapping[str, Any]], ceiling: Iterable[Mapping[str, Any]]) -> bool:
    """Whether each rule of an allow list is covered by one rule of another."""
    limits = list(ceiling)
    return all(any(_covers(limit, rule) for limit in limits) for rule in rules)


def _covers(limit: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    same = (limit["protocol"], limit["port"]) == (rule["protocol"], rule["port"])
    return same and _destination_within(str(rule["to"]), str(limit["to"]))


def _destination_within(one: str, other: str) -> bool:
    network, limit = _network(one), _network(other)
    if network is not None and limit is not None:
        if isinstance(network, IPv4Network) and isinstance(limit, IPv4Network):
            return network.subnet_of(limit)
        if isinstance(network, IPv6Network) and isinstance(limit, IPv6Network):
            return network.subnet_of(limit)
        return False
    if network is not None or limit is not None:
        return False  # a name leads anywhere
    name, pattern = one.lower().rstrip("."), other.lower().rstrip(".")
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern[1:])
    return name == pattern


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


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


def bounded(who: str, kin: Mapping[str, Kin]) -> tuple[Grant, ...]:
    """The grants of an agent, cut to what is left to each agent that it descends from.

    Nobody has a grant to itself, yet a sub-agent may call back those that it comes from, where
    both presets say so: a grant to an ancestor counts as covered by that ancestor. And a host name
    counts as covered where the ancestor's list covers the name, whether or not it has asked for
    that very name itself.

    Args:
        who: its id.
        kin: the agent and its ancestors by id, and others. Where an ancestor is missing, nothing
            is granted.
    """
    line: list[Kin] = []
    at: str | None = who
    while at is not None:
        if at not in kin:
            return ()
        line.append(kin[at])
        at = line[-1].parent
    left: list[tuple[Kin, tuple[Grant, ...]]] = []
    for one in reversed(line):
        left.append((one, _cut(one, left)))
    return left[-1][1]


def _cut(one: Kin, left: list[tuple[Kin, tuple[Grant, ...]]]) -> tuple[Grant, ...]:
    """An agent's grants, cut to what is left to its ancestors, of which the first comes first."""
    named = {
        Grant(rule["address"], rule["protocol"], rule["port"]): rule
        for rule in one.asked
        if "address" in rule
    }
    kept: set[Grant] = set()
    asked = one.grants
    for above, ceiling in reversed(left):
        # What an ancestor still has, all of its own have.
        covered = set(within(asked, ceiling))
        kept |= covered
        asked = tuple(
            grant
            for grant in asked
            if grant not in covered
            and (
                grant.to == above.address
                or (grant in named and allow_within([named[grant]], above.asked))
            )
        )
    kept.update(asked)
    return tuple(grant for grant in one.grants if grant in kept)


def within(
    grants: tuple[Grant, ...], ceiling: Iterable[Grant], itself: str | None = None
) -> tuple[Grant, ...]:
    """Those of the grants that a ceiling covers.

    Args:
        grants: of a sub-agent.
        ceiling: of its parent.
        itself: the parent's own address, where calling it back counts as covered.
    """
    limits = set(ceiling)
    networks = [limit for limit in limits if "/" in limit.to]
    return tuple(
        grant
        for grant in grants
        if grant in limits
        or grant.to == itself
        or Grant(grant.to, "any", ANY_PORT) in limits
        or any(_inside(grant, network) for network in networks)
    )


def _inside(grant: Grant, network: Grant) -> bool:
    same = (grant.protocol, grant.port) == (network.protocol, network.port)
    return same and _destination_within(grant.to, network.to)


def line_of(peer_id: str, kin: Mapping[str, Kin]) -> str | None:
    """The address of the agent that this one's line begins with; ``None`` where it is itself."""
    at = peer_id
    while (parent := kin[at].parent) is not None and parent in kin:
        at = parent
    return kin[at].address if at != peer_id else None
