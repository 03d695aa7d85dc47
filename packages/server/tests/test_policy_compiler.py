"""The policy compiler decides what the policy says, and the fast path is the exact difference."""

from __future__ import annotations

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

TOOLS = ServiceRule("tools", "10.96.0.7", frozenset({("tcp", 443), ("udp", 53)}), True)
PAYROLL = ServiceRule("payroll", "10.96.0.8", frozenset({("tcp", 80)}), False)

addresses = st.integers(2, 9).map(lambda n: f"10.96.0.{n}")
ports = st.integers(1, 4)
protocols = st.sampled_from(["tcp", "udp"])
grants = st.builds(Grant, addresses, protocols, ports)


@st.composite
def workspaces(draw: st.DrawFn) -> Workspace:
    spots = draw(st.lists(addresses, unique=True, max_size=8))
    services, agents = {}, {}
    for number, address in enumerate(spots):
        if draw(st.booleans()):
            services[f"s{number}"] = ServiceRule(
                f"s{number}",
                address,
                draw(st.frozensets(st.tuples(protocols, ports), max_size=3)),
                draw(st.booleans()),
            )
        else:
            preset = draw(st.sampled_from(["sandboxed", "coordinator", "isolated"]))
            allow = draw(st.frozensets(grants, max_size=6)) if preset == "isolated" else frozenset()
            agents[f"p{number}"] = AgentRule(f"p{number}", address, preset, allow)
    return Workspace(services, agents)


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


@given(workspaces())
def test_no_grant_leads_to_an_agent_that_accepts_no_ingress_or_to_a_strangers_address(
    workspace: Workspace,
) -> None:
    targets = {s.address for s in workspace.services.values()} | {
        a.address for a in workspace.agents.values() if a.preset == "coordinator"
    }
    for peer, found in compile_workspace(workspace).items():
        assert {g.to for g in found} <= targets - {workspace.agents[peer].address}


@given(workspaces())
def test_compiling_a_workspace_is_compiling_each_agent(workspace: Workspace) -> None:
    services, agents = workspace.services.values(), workspace.agents.values()
    assert compile_workspace(workspace) == {
        agent.id: compile_grants(agent, services, agents) for agent in agents
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
    )
    change = workspace.services.get(name) or workspace.agents[name]
    candidates = [
        a for a in workspace.agents.values() if a.preset in affected_presets(change) or a is change
    ]
    fast = {agent.id for agent in affected(change, candidates)}
    assert fast == set(changed_agents(without, workspace)) - {name}
    assert fast == set(changed_agents(workspace, without)) - {name}
