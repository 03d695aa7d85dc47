"""The policy compiler: from presets, services and agents to grants. Pure: data in, data out.

Default deny, both ways: a grant comes about only where the source's egress and the destination's
ingress both say so.

========== =========================================================== =======================
preset     egress                                                      ingress
========== =========================================================== =======================
sandboxed  designated services of the workspace, on their ports        none
coordinator the same, and agents of the workspace that accept ingress  agents of the workspace
isolated   its own ``allow`` list, where the destination accepts it    none
========== =========================================================== =======================

A service accepts its own ports from agents of its workspace and reaches nothing by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

PRESETS: Final = ("sandboxed", "coordinator", "isolated")
ACCEPTS_INGRESS: Final = frozenset({"coordinator"})
ANY_PORT: Final = 0


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """One permitted flow of a peer: to an overlay address, by protocol and port."""

    to: str
    protocol: Literal["tcp", "udp", "any"]
    port: int


@dataclass(frozen=True, slots=True)
class ServiceRule:
    """What the policy needs to know of a tool service."""

    name: str
    address: str
    ports: frozenset[tuple[str, int]]
    designated: bool
    hostnames: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class AgentRule:
    """What the policy needs to know of an agent. ``allow`` counts for ``isolated`` alone.

    Attributes:
        allow: what it asked for, by address or by a service's host name.
        names: what it asked for by other host names, at the addresses that they got.
    """

    id: str
    address: str
    preset: str
    allow: frozenset[Grant] = frozenset()
    names: frozenset[Grant] = frozenset()


@dataclass(frozen=True, slots=True)
class Workspace:
    """All that decides the grants of one workspace; grants never cross workspaces."""

    services: Mapping[str, ServiceRule] = field(default_factory=dict)
    agents: Mapping[str, AgentRule] = field(default_factory=dict)


def compile_grants(
    agent: AgentRule, services: Iterable[ServiceRule], agents: Iterable[AgentRule]
) -> tuple[Grant, ...]:
    """The grants of one agent, sorted.

    Args:
        agent: whose grants.
        services: the workspace's services.
        agents: agents of the workspace; those that accept no ingress make no difference.
    """
    reachable = [peer for peer in agents if peer.preset in ACCEPTS_INGRESS and peer.id != agent.id]
    grants: set[Grant] = set()
    if agent.preset in ("sandboxed", "coordinator"):
        for service in services:
            if service.designated:
                grants.update(_ports(service))
    if agent.preset == "coordinator":
        grants.update(Grant(peer.address, "any", ANY_PORT) for peer in reachable)
    if agent.preset == "isolated":
        grants.update(agent.names)
        grants.update(offered(agent.allow, services))
        coordinators = {peer.address for peer in reachable}
        grants.update(rule for rule in agent.allow if rule.to in coordinators)
    return tuple(sorted(grants))


def compile_workspace(workspace: Workspace) -> dict[str, tuple[Grant, ...]]:
    """The grants of every agent of a workspace, by peer id. Equal grant sets are one object."""
    services = tuple(workspace.services.values())
    reachable = tuple(a for a in workspace.agents.values() if a.preset in ACCEPTS_INGRESS)
    sandboxed: tuple[Grant, ...] | None = None
    compiled = {}
    for agent in workspace.agents.values():
        if agent.preset == "sandboxed":
            if sandboxed is None:
                sandboxed = compile_grants(agent, services, ())
            compiled[agent.id] = sandboxed
        else:
            compiled[agent.id] = compile_grants(agent, services, reachable)
    return compiled


def affected_presets(change: ServiceRule | AgentRule) -> frozenset[str]:
    """The presets whose agents may gain or lose a grant when this one comes or goes.

    It bounds what has to be read from the database; :func:`affected` decides exactly.
    """
    if isinstance(change, ServiceRule):
        return frozenset(PRESETS if change.designated else ("isolated",))
    if change.preset in ACCEPTS_INGRESS:
        return frozenset(("coordinator", "isolated"))
    return frozenset()


def affected(change: ServiceRule | AgentRule, agents: Iterable[AgentRule]) -> list[AgentRule]:
    """Exactly the other agents whose grants differ with and without ``change``.

    Args:
        change: a service or an agent that comes or goes.
        agents: candidates of the same workspace, at least those of :func:`affected_presets`.
    """
    services = (change,) if isinstance(change, ServiceRule) else ()
    others = (change,) if isinstance(change, AgentRule) else ()
    # A grant depends on its source and its destination only, so alone with the change is enough.
    return [
        agent
        for agent in agents
        if agent.id != getattr(change, "id", None) and compile_grants(agent, services, others)
    ]


def changed_agents(before: Workspace, after: Workspace) -> Collection[str]:
    """The ids of agents that are new or whose grants differ: the specification of `affected`."""
    old, new = compile_workspace(before), compile_workspace(after)
    return {peer for peer, grants in new.items() if old.get(peer) != grants}


def offered(asked: Collection[Grant], services: Iterable[ServiceRule]) -> Iterable[Grant]:
    """The part of an allow list that services accept, asked for by address or by host name."""
    for service in services:
        for grant in _ports(service):
            if any(replace(grant, to=to) in asked for to in (service.address, *service.hostnames)):
                yield grant


def _ports(service: ServiceRule) -> Iterable[Grant]:
    for protocol, port in service.ports:
        yield Grant(service.address, "udp" if protocol == "udp" else "tcp", port)
