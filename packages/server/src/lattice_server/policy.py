"""The policy compiler: from presets, services and agents to grants. Pure: data in, data out.

Default deny, both ways: a grant comes about only where the source's egress and the destination's
ingress both say so (:mod:`lattice_server.presets` has the words). A service accepts its own ports
from agents of its workspace and reaches nothing by itself; a connector that advertises networks
accepts for their addresses whatever an allow list names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from typing import Final, Literal

from lattice_server.presets import AGENTS, BUILT_IN, NOTHING, Presets

ANY_PORT: Final = 0


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """One permitted flow of a peer: to an overlay address or a network, by protocol and port."""

    to: str
    protocol: Literal["tcp", "udp", "any"]
    port: int


@dataclass(frozen=True, slots=True)
class ServiceRule:
    """What the policy needs to know of a service or connector.

    Attributes:
        networks: outside the overlay, that a connector advertises.
    """

    name: str
    address: str
    ports: frozenset[tuple[str, int]]
    designated: bool
    hostnames: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class AgentRule:
    """What the policy needs to know of an agent. Its lists count where the preset takes them.

    Attributes:
        allow: what it asked for, by address, network or a service's host name.
        names: what it asked for by other host names, at the addresses that they got.
        parent: the agent that delegated to it.
    """

    id: str
    address: str
    preset: str
    allow: frozenset[Grant] = frozenset()
    names: frozenset[Grant] = frozenset()
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Workspace:
    """All that decides the grants of one workspace; grants never cross workspaces."""

    services: Mapping[str, ServiceRule] = field(default_factory=dict)
    agents: Mapping[str, AgentRule] = field(default_factory=dict)
    presets: Presets = field(default_factory=lambda: BUILT_IN)


def compile_grants(
    agent: AgentRule,
    services: Iterable[ServiceRule],
    agents: Iterable[AgentRule],
    presets: Presets = BUILT_IN,
) -> tuple[Grant, ...]:
    """The grants of one agent, sorted.

    Args:
        agent: whose grants. One whose preset is none of the workspace's has none.
        services: the workspace's services.
        agents: agents of the workspace; those that accept no ingress make no difference.
        presets: of the workspace.
    """
    preset = presets.get(agent.preset, NOTHING)
    grants: set[Grant] = set()
    for service in services:
        if preset.uses(service.name, designated=service.designated):
            grants.update(_ports(service))
    reachable = {peer.address for peer in accepting(agents, presets) if peer.id != agent.id}
    if AGENTS in preset.egress:
        grants.update(Grant(address, "any", ANY_PORT) for address in reachable)
    if preset.own_list:
        grants.update(agent.names)
        grants.update(offered(agent.allow, services))
        grants.update(rule for rule in agent.allow if rule.to in reachable)
    return tuple(sorted(grants))


def compile_workspace(workspace: Workspace) -> dict[str, tuple[Grant, ...]]:
    """The grants of every agent of a workspace, by peer id. Equal grant sets are one object."""
    services = tuple(workspace.services.values())
    reachable = tuple(accepting(workspace.agents.values(), workspace.presets))
    alike: dict[str, tuple[Grant, ...]] = {}
    compiled = {}
    for agent in workspace.agents.values():
        preset = workspace.presets.get(agent.preset, NOTHING)
        if preset.own_list or AGENTS in preset.egress:
            compiled[agent.id] = compile_grants(agent, services, reachable, workspace.presets)
            continue
        if agent.preset not in alike:
            alike[agent.preset] = compile_grants(agent, services, (), workspace.presets)
        compiled[agent.id] = alike[agent.preset]
    return compiled


def accepting(agents: Iterable[AgentRule], presets: Presets) -> Iterable[AgentRule]:
    """Those agents that accept agents of their workspace.

    A sub-agent does where all that it comes from do, whatever its preset was changed to since.
    """
    willing = {a.id: a for a in agents if presets.get(a.preset, NOTHING).accepts_agents}

    def line_accepts(agent: AgentRule) -> bool:
        if agent.parent is None:
            return True
        parent = willing.get(agent.parent)
        return parent is not None and line_accepts(parent)

    return [agent for agent in willing.values() if line_accepts(agent)]


def accepting_presets(presets: Presets) -> frozenset[str]:
    """The names of the presets whose agents accept agents."""
    return frozenset(name for name, preset in presets.items() if preset.accepts_agents)


def affected_presets(
    change: ServiceRule | AgentRule, presets: Presets = BUILT_IN
) -> frozenset[str]:
    """The presets whose agents may gain or lose a grant when this one comes or goes.

    It bounds what has to be read from the database; :func:`affected` decides exactly.
    """
    if isinstance(change, AgentRule) and change.preset not in accepting_presets(presets):
        return frozenset()
    return frozenset(
        name
        for name, preset in presets.items()
        if preset.own_list
        or (
            preset.uses(change.name, designated=change.designated)
            if isinstance(change, ServiceRule)
            else AGENTS in preset.egress
        )
    )


def affected(
    change: ServiceRule | AgentRule, agents: Iterable[AgentRule], presets: Presets = BUILT_IN
) -> list[AgentRule]:
    """Exactly the other agents whose grants differ with and without ``change``.

    Args:
        change: a service or an agent that comes or goes.
        agents: candidates of the same workspace, at least those of :func:`affected_presets`.
        presets: of the workspace.
    """
    services = (change,) if isinstance(change, ServiceRule) else ()
    # Without its line, which may keep it from accepting: then too many are named, and nobody lacks.
    others = (replace(change, parent=None),) if isinstance(change, AgentRule) else ()
    # Names are reached whatever comes or goes. All other grants depend on their source and their
    # destination only, so alone with the change is enough.
    return [
        agent
        for agent in agents
        if agent.id != getattr(change, "id", None)
        and compile_grants(replace(agent, names=frozenset()), services, others, presets)
    ]


def changed_agents(before: Workspace, after: Workspace) -> Collection[str]:
    """The ids of agents that are new or whose grants differ: the specification of `affected`."""
    old, new = compile_workspace(before), compile_workspace(after)
    return {peer for peer, grants in new.items() if old.get(peer) != grants}


def offered(asked: Collection[Grant], services: Iterable[ServiceRule]) -> Iterable[Grant]:
    """The part of an allow list that services accept.

    A service's ports are asked for by address or by host name, and what a connector advertises by
    an address or a network inside of it.
    """
    for service in services:
        for grant in _ports(service):
            if any(replace(grant, to=to) in asked for to in (service.address, *service.hostnames)):
                yield grant
        if service.networks:
            yield from (rule for rule in asked if _inside(rule.to, service.networks))


def _inside(to: str, networks: Iterable[str]) -> bool:
    try:
        asked = IPv4Network(to)
    except ValueError:
        return False
    return any(asked.subnet_of(IPv4Network(network)) for network in networks)


def _ports(service: ServiceRule) -> Iterable[Grant]:
    for protocol, port in service.ports:
        yield Grant(service.address, "udp" if protocol == "udp" else "tcp", port)
