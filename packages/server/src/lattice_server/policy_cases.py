"""Cases of a policy: who reaches what, decided by the compiler itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Any, Literal

from lattice_server import destinations, policy
from lattice_server.attenuation import Kin, Lines
from lattice_server.policy import ANY_PORT, AgentRule, Grant, ServiceRule
from lattice_server.presets import NOTHING

Verdict = Literal["allow", "deny"]
# Stand for the address of an agent that is not there, so that nothing else has it.
SUBJECT, TARGET = "(subject)", "(target)"


class CaseError(ValueError):
    """A case speaks of something that the workspace does not have; the text says of what."""


@dataclass(frozen=True, slots=True)
class Case:
    """Whether somebody reaches something.

    Attributes:
        subject: a preset, or an agent by id or name.
        allow: what an agent of that preset would bring along as its ``allow`` list.
        target: a service, a preset, an agent, a host name, an address or a network.
    """

    subject: str
    target: str
    port: int
    protocol: str
    expect: Verdict
    allow: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True)
class Ground:
    """What cases are decided on.

    Attributes:
        workspace: services, living agents and presets, as they are or as they are proposed.
        names: of the living agents, by id.
        kin: the living agents with the grants of their own presets, by id.
        egress: whether the workspace has an egress connector.
    """

    workspace: policy.Workspace
    names: Mapping[str, str]
    kin: Mapping[str, Kin]
    egress: bool


def decide(case: Case, ground: Ground) -> tuple[Verdict, str]:
    """The verdict, and why.

    Raises:
        CaseError: the case speaks of something that is not there.
    """
    to, extra = _target(case, ground)
    grants, who = _grants(case, ground, extra)
    for grant in grants:
        if _covers(grant, to, case.protocol, case.port):
            return "allow", f"{who} is granted {_text(grant)}"
    return "deny", f"{who} has no grant that covers it"


def _grants(
    case: Case, ground: Ground, extra: Iterable[AgentRule]
) -> tuple[tuple[Grant, ...], str]:
    kind, name = _split(case.subject)
    workspace = ground.workspace
    if kind in ("", "preset") and name in workspace.presets:
        allow, names = _lists(case, ground)
        subject = AgentRule(SUBJECT, SUBJECT, name, allow, names)
        agents = [*workspace.agents.values(), *extra]
        services = workspace.services.values()
        words = workspace.presets.get(name, NOTHING)
        who = f"{name} ({', '.join(sorted(words.egress)) or 'no egress'})"
        return policy.compile_grants(subject, services, agents, workspace.presets), who
    if kind in ("", "agent"):
        if case.allow:
            raise CaseError(
                f"{case.subject} is an agent that has its list already; leave allow out"
            )
        peer = _agent(name, ground)
        preset = workspace.agents[peer].preset
        return Lines(_with(tuple(extra), ground)).bounded(peer), f"{name} ({preset})"
    raise CaseError(f"the workspace has no preset {name}")


def _with(others: tuple[AgentRule, ...], ground: Ground) -> Mapping[str, Kin]:
    """The living agents as they are where these others are there, too."""
    if not others:
        return ground.kin
    agents, presets = ground.workspace.agents, ground.workspace.presets
    return {
        peer: replace(
            one,
            grants=(*one.grants, *policy.compile_grants(agents[peer], (), others, presets)),
        )
        for peer, one in ground.kin.items()
    }


def _lists(case: Case, ground: Ground) -> tuple[frozenset[Grant], frozenset[Grant]]:
    """An allow list, told apart as an enrollment does: inside the workspace, and host names."""
    known = {name for s in ground.workspace.services.values() for name in s.hostnames}
    allow: set[Grant] = set()
    names: set[Grant] = set()
    for rule in case.allow:
        kind = destinations.parse(rule.to).kind
        beyond = kind in ("name", "pattern") and rule.to not in known
        if beyond and not ground.egress:
            raise CaseError(f"the workspace has no egress connector, which {rule.to} needs")
        (names if beyond else allow).add(rule)
    return frozenset(allow), frozenset(names)


def _target(case: Case, ground: Ground) -> tuple[str, tuple[AgentRule, ...]]:
    kind, name = _split(case.target)
    workspace = ground.workspace
    service = workspace.services.get(name)
    if kind in ("", "service") and service is not None:
        return service.address, ()
    if kind in ("", "preset") and name in workspace.presets:
        return TARGET, (AgentRule(TARGET, TARGET, name),)
    if kind in ("", "agent"):
        try:
            return workspace.agents[_agent(name, ground)].address, ()
        except CaseError:
            if kind:
                raise
    if kind:
        raise CaseError(f"the workspace has no {kind} {name}")
    return _outside(name, workspace.services.values()), ()


def _outside(name: str, services: Iterable[ServiceRule]) -> str:
    for service in services:
        if name in service.hostnames:
            return service.address
    try:
        to = destinations.parse(name)
    except ValueError as error:
        raise CaseError(f"{name} is neither of the workspace nor a destination: {error}") from None
    if to.kind == "name" and "." not in to.text:
        raise CaseError(f"the workspace has no service, preset or agent {name}")
    if to.kind == "name" and to.text.endswith(".lattice"):
        raise CaseError(f"no service of the workspace has the host name {name}")
    return to.text


def _agent(name: str, ground: Ground) -> str:
    if name in ground.workspace.agents:
        return name
    found = [peer for peer, called in ground.names.items() if called == name]
    if len(found) != 1:
        many = f"{len(found)} agents {name}; name one by its id" if found else f"no agent {name}"
        raise CaseError(f"the workspace has {many}")
    return found[0]


def _covers(grant: Grant, to: str, protocol: str, port: int) -> bool:
    if (grant.protocol, grant.port) not in ((protocol, port), ("any", ANY_PORT)):
        return False
    if grant.to == to:
        return True
    if grant.to.startswith("*."):
        return to.removeprefix("*").endswith(grant.to[1:])
    try:
        return IPv4Network(to).subnet_of(IPv4Network(grant.to))
    except ValueError:
        return False


def _split(text: str) -> tuple[str, str]:
    kind, separator, name = text.partition(":")
    return (kind, name) if separator and kind in ("service", "preset", "agent") else ("", text)


def _text(grant: Grant) -> str:
    port = "" if grant.port == ANY_PORT else f":{grant.port}"
    return f"{grant.to}{port}/{grant.protocol}"


def case_of(body: Mapping[str, Any]) -> Case:
    """A case of the API's body."""
    return Case(
        body["from"],
        body["to"],
        body["port"],
        body["protocol"],
        body["expect"],
        tuple(
            Grant(destinations.parse(rule["to"]).text, rule["protocol"], rule["port"])
            for rule in body["allow"]
        ),
    )
