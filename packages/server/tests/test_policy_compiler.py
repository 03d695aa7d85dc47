"""The policy compiler decides what the policy says, and the fast path is the exact difference."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_server.policy import (
    AgentRule,
    Grant,
    ServiceRule,
    Workspace,
    affected,
    affected_presets,
    changed_agents,
    compile_grants,
    compile_workspace,
)
from lattice_server.presets import BUILT_IN, NOTHING, Preset, check_name, check_words, presets_of

TOOLS = ServiceRule("tools", "10.96.0.7", frozenset({("tcp", 443), ("udp", 53)}), True)
PAYROLL = ServiceRule("payroll", "10.96.0.8", frozenset({("tcp", 80)}), False)

addresses = st.integers(2, 9).map(lambda n: f"10.96.0.{n}")
ports = st.integers(1, 4)
protocols = st.sampled_from(["tcp", "udp"])
grants = st.builds(Grant, addresses, protocols, ports)


egress_words = st.frozensets(
    st.sampled_from(["services", "agents", "allow", "service:s0", "service:s1", "service:gone"])
)
ingress_words = st.frozensets(st.sampled_from(["agents"]))
# One of its own workspace's presets is sometimes not there any more.
own_presets = st.dictionaries(
    st.sampled_from(["reviewer", "planner"]),
    st.builds(Preset, egress_words, ingress_words),
    max_size=2,
)
preset_names = st.sampled_from([*BUILT_IN, "reviewer", "planner"])
networks = st.sampled_from(["10.0.7.0/24", "10.0.8.0/25"])
beyond = st.sampled_from(["10.0.7.5", "10.0.7.128/25", "10.0.8.200", "10.0.9.1", "10.0.0.0/8"])
wishes = st.builds(Grant, addresses | beyond | st.just("s0.lattice"), protocols, ports)


@st.composite
def workspaces(draw: st.DrawFn) -> Workspace:
    presets = draw(own_presets) | dict(BUILT_IN)
    advertised = draw(st.lists(networks, unique=True, max_size=2))
    spots = draw(st.lists(addresses, unique=True, max_size=8))
    services, agents = {}, {}
    for number, address in enumerate(spots):
        if draw(st.booleans()):
            services[f"s{number}"] = ServiceRule(
                f"s{number}",
                address,
                draw(st.frozensets(st.tuples(protocols, ports), max_size=3)),
                draw(st.booleans()),
                frozenset({f"s{number}.lattice"}),
                # A connector advertises networks instead of having ports; here it may have both.
                frozenset({advertised.pop()} if advertised and draw(st.booleans()) else ()),
            )
        else:
            agents[f"p{number}"] = AgentRule(
                f"p{number}",
                address,
                draw(preset_names),
                draw(st.frozensets(wishes, max_size=6)),
                draw(st.frozensets(grants, max_size=1)),
            )
    return Workspace(services, agents, presets)


def test_sandboxed_reaches_designated_services_on_their_ports_alone() -> None:
    agent = AgentRule("a", "10.96.0.20", "sandboxed")
    other = AgentRule("b", "10.96.0.21", "coordinator")
    assert compile_grants(agent, [TOOLS, PAYROLL], [agent, other]) == (
        Grant("10.96.0.7", "tcp", 443),
        Grant("10.96.0.7", "udp", 53),
    )


def test_coordinator_reaches_services_and_coordinators_but_no_sandboxed_agent() -> None:
    one = AgentRule("a", "10.96.0.20", "coordinator")
    two = AgentRule("b", "10.96.0.21", "coordinator")
    sandboxed = AgentRule("c", "10.96.0.22", "sandboxed")
    found = compile_grants(one, [TOOLS, PAYROLL], [one, two, sandboxed])
    assert Grant("10.96.0.21", "any", 0) in found
    assert {g.to for g in found} == {"10.96.0.7", "10.96.0.21"}


def test_isolated_reaches_its_allow_list_where_it_is_accepted() -> None:
    wanted = frozenset(
        {
            Grant("10.96.0.8", "tcp", 80),  # undesignated, and named by the agent
            Grant("10.96.0.7", "tcp", 22),  # a port the service does not have
            Grant("10.96.0.22", "tcp", 80),  # an agent that accepts nothing
            Grant("10.96.0.99", "tcp", 80),  # nobody, or another workspace
        }
    )
    agent = AgentRule("a", "10.96.0.20", "isolated", wanted)
    sandboxed = AgentRule("c", "10.96.0.22", "sandboxed")
    assert compile_grants(agent, [TOOLS, PAYROLL], [sandboxed]) == (Grant("10.96.0.8", "tcp", 80),)


def test_unknown_preset_reaches_nothing() -> None:
    assert compile_grants(AgentRule("a", "10.96.0.20", "root"), [TOOLS], []) == ()


def test_a_preset_of_ones_own_is_made_of_the_same_words() -> None:
    presets = presets_of(
        {"presets": {"auditor": {"egress": ["service:payroll", "agents"], "ingress": []}}}
    )
    auditor = AgentRule("a", "10.96.0.20", "auditor")
    other = AgentRule("b", "10.96.0.21", "coordinator")
    assert compile_grants(auditor, [TOOLS, PAYROLL], [auditor, other], presets) == (
        Grant("10.96.0.21", "any", 0),
        Grant("10.96.0.8", "tcp", 80),
    )
    # And nobody comes to it.
    assert compile_grants(other, [], [auditor, other], presets) == ()
    # The workspace does not have it any more.
    assert compile_grants(auditor, [TOOLS, PAYROLL], [other]) == ()


def test_built_in_presets_stay_what_they_are() -> None:
    document = {"presets": {"sandboxed": {"egress": ["agents", "allow"], "ingress": ["agents"]}}}
    assert presets_of(document)["sandboxed"] == BUILT_IN["sandboxed"]
    with pytest.raises(ValueError, match="choose another name"):
        check_name("sandboxed")


@pytest.mark.parametrize("word", ["everything", "service:", "service:UPPER", "", "services:x"])
def test_what_is_no_word_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is no word of egress"):
        check_words([word], "egress")
    with pytest.raises(ValueError, match="is no word of ingress"):
        check_words(["services"], "ingress")


@pytest.mark.parametrize("name", ["Root", "1st", "a" * 33, "-a", "a-", "a b", ""])
def test_what_is_no_name_of_a_preset_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        check_name(name)


@given(workspaces())
def test_no_grant_leads_to_an_agent_that_accepts_no_ingress_or_to_a_strangers_address(
    workspace: Workspace,
) -> None:
    presets = workspace.presets
    targets = {s.address for s in workspace.services.values()} | {
        a.address
        for a in workspace.agents.values()
        if "agents" in presets.get(a.preset, NOTHING).ingress
    }
    advertised = [IPv4Network(n) for s in workspace.services.values() for n in s.networks]
    for peer, found in compile_workspace(workspace).items():
        agent = workspace.agents[peer]
        words = presets.get(agent.preset, NOTHING).egress
        assert words or not found
        for grant in set(found) - agent.names:
            if grant.to in targets - {agent.address}:
                continue
            assert "allow" in words
            assert grant in agent.allow
            assert any(IPv4Network(grant.to).subnet_of(network) for network in advertised)


@given(workspaces())
def test_compiling_a_workspace_is_compiling_each_agent(workspace: Workspace) -> None:
    services, agents = workspace.services.values(), workspace.agents.values()
    assert compile_workspace(workspace) == {
        agent.id: compile_grants(agent, services, agents, workspace.presets) for agent in agents
    }


@given(workspaces(), st.data())
def test_affected_is_exactly_the_difference_when_something_comes_or_goes(
    workspace: Workspace, data: st.DataObject
) -> None:
    names = [*workspace.services, *workspace.agents]
    if not names:
        return
    name = data.draw(st.sampled_from(names))
    without = Workspace(
        {k: v for k, v in workspace.services.items() if k != name},
        {k: v for k, v in workspace.agents.items() if k != name},
        workspace.presets,
    )
    change = workspace.services.get(name) or workspace.agents[name]
    presets = workspace.presets
    names = affected_presets(change, presets)
    candidates = [a for a in workspace.agents.values() if a.preset in names or a is change]
    fast = {agent.id for agent in affected(change, candidates, presets)}
    assert fast == set(changed_agents(without, workspace)) - {name}
    assert fast == set(changed_agents(workspace, without)) - {name}
