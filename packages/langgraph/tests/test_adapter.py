"""A graph under an identity does all that it does without one, and nodes find their agent."""

from __future__ import annotations

import asyncio
import operator
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, ToolRuntime
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, Send, interrupt

from lattice_langgraph import bind, current_agent, lattice_lifespan
from lattice_langgraph.adapter import AGENT_KEY
from lattice_sdk import IdentityClosed, LatticeAgent
from lattice_sdk.testing import World


class State(TypedDict):
    seen: Annotated[list[str], operator.add]


def who(_: State) -> State:
    return {"seen": [current_agent().peer_id]}


async def who_async(_: State) -> State:
    return {"seen": [current_agent().peer_id]}


def chain(*nodes: Any) -> StateGraph[Any, Any, Any, Any]:
    graph = StateGraph(State)
    last = START
    for number, node in enumerate(nodes):
        graph.add_node(f"n{number}", node)
        graph.add_edge(last, f"n{number}")
        last = f"n{number}"
    graph.add_edge(last, END)
    return graph


def start() -> State:
    return {"seen": []}


def test_it_is_a_compiled_graph_and_the_original_is_untouched(agent: LatticeAgent) -> None:
    compiled = chain(who).compile(name="original")
    g = bind(compiled, agent)
    assert isinstance(g, CompiledStateGraph)
    assert g.get_name() == "original"
    assert type(compiled) is CompiledStateGraph
    assert g.get_graph().draw_mermaid() == compiled.get_graph().draw_mermaid()
    with pytest.raises(IdentityClosed, match="lattice_lifespan"):
        compiled.invoke(start())


def test_each_way_to_run_it_finds_the_agent(agent: LatticeAgent) -> None:
    g = bind(chain(who, who).compile(), agent)
    twice = {"seen": [agent.peer_id] * 2}
    assert g.invoke(start()) == twice
    assert g.batch([start(), start(), start()]) == [twice] * 3
    assert list(g.stream(start(), stream_mode="values"))[-1] == twice
    assert g.with_config(tags=["x"]).invoke(start()) == twice


@pytest.mark.anyio
async def test_each_async_way_to_run_it_finds_the_agent(agent: LatticeAgent) -> None:
    g = bind(chain(who_async, who).compile(), agent)
    twice = {"seen": [agent.peer_id] * 2}
    assert await g.ainvoke(start()) == twice
    assert await g.abatch([start(), start()]) == [twice] * 2
    assert [step async for step in g.astream(start(), stream_mode="values")][-1] == twice
    events = [event async for event in g.astream_events(start(), version="v2")]
    assert events[-1]["event"] == "on_chain_end"
    assert events[-1]["data"]["output"] == twice


def test_stream_left_early_ends_the_run(agent: LatticeAgent) -> None:
    ran: list[int] = []

    def node(_: State) -> State:
        ran.append(1)
        return {"seen": []}

    for _ in bind(chain(node, node, node).compile(), agent).stream(start()):
        break
    assert len(ran) < 3
    with pytest.raises(IdentityClosed):
        current_agent()


def test_sqlite_checkpoints_resume_and_hold_nothing_of_the_agent(
    agent: LatticeAgent, tmp_path: Any
) -> None:
    def ask(_: State) -> State:
        return {"seen": [interrupt("continue?"), current_agent().peer_id]}

    config: Any = {"configurable": {"thread_id": "t"}}
    path = tmp_path / "checkpoints.db"
    with SqliteSaver.from_conn_string(str(path)) as saver:
        g = bind(chain(who, ask).compile(checkpointer=saver), agent)
        assert "__interrupt__" in g.invoke(start(), config)
        assert g.get_state(config).next == ("n1",)
        g.update_state(config, {"seen": ["edited"]})
    with SqliteSaver.from_conn_string(str(path)) as saver:
        g = bind(chain(who, ask).compile(checkpointer=saver), agent)
        done = g.invoke(Command(resume="yes"), config)
        assert done["seen"] == [agent.peer_id, "edited", "yes", agent.peer_id]
        assert len(list(g.get_state_history(config))) > 2
    with sqlite3.connect(path) as database:
        everything = "\n".join(database.iterdump())
    assert AGENT_KEY not in everything
    assert agent.wireguard_config is not None
    assert agent.wireguard_config.get_secret_value() not in everything


def test_subgraphs_and_stores_work_and_share_the_identity(agent: LatticeAgent) -> None:
    def remember(_: State, runtime: Runtime[Any]) -> State:
        assert runtime.store is not None
        runtime.store.put(("agents",), "who", {"peer": current_agent().peer_id})
        return {"seen": []}

    store = InMemoryStore()
    g = bind(chain(chain(who).compile(), remember).compile(store=store), agent)
    assert g.invoke(start()) == {"seen": [agent.peer_id]}
    found = store.get(("agents",), "who")
    assert found is not None
    assert found.value == {"peer": agent.peer_id}


def test_parallel_branches_run_in_threads_with_their_agent(agent: LatticeAgent) -> None:
    graph = StateGraph(State)
    graph.add_node("who", who)
    graph.add_conditional_edges(START, lambda _: [Send("who", start()) for _ in range(20)])
    assert bind(graph.compile(), agent).invoke(start()) == {"seen": [agent.peer_id] * 20}


def test_tools_of_a_tool_node_find_the_agent(agent: LatticeAgent) -> None:
    @tool
    def whoami() -> str:
        """Tell the peer."""
        return current_agent().peer_id

    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([whoami]))
    graph.add_edge(START, "tools")
    call = AIMessage("", tool_calls=[{"name": "whoami", "args": {}, "id": "1"}])
    answer = bind(graph.compile(), agent).invoke({"messages": [call]})
    assert answer["messages"][-1].content == agent.peer_id


def test_tool_may_ask_its_runtime(agent: LatticeAgent) -> None:
    @tool
    def whoami(runtime: ToolRuntime) -> str:
        """Tell the peer, from a thread that has no context of its own."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(current_agent, runtime).result().peer_id

    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([whoami]))
    graph.add_edge(START, "tools")
    call = AIMessage("", tool_calls=[{"name": "whoami", "args": {}, "id": "1"}])
    answer = bind(graph.compile(), agent).invoke({"messages": [call]})
    assert answer["messages"][-1].content == agent.peer_id


@pytest.mark.anyio
async def test_tasks_and_threads_of_async_graphs_never_mix(
    agent: LatticeAgent, other: LatticeAgent
) -> None:
    async def node(_: State) -> State:
        await asyncio.sleep(0)
        task = asyncio.create_task(who_async(start()))
        thread = asyncio.to_thread(who, start())
        found = [await task, await thread, await who_async(start())]
        return {"seen": [one["seen"][0] for one in found]}

    graphs = [bind(chain(*[node] * 5).compile(), one) for one in (agent, other)]
    runs = await asyncio.gather(*[graphs[number % 2].ainvoke(start()) for number in range(20)])
    for number, run in enumerate(runs):
        assert run["seen"] == [(agent, other)[number % 2].peer_id] * 15
    with pytest.raises(IdentityClosed):
        current_agent()


def test_config_has_the_agent_too(agent: LatticeAgent) -> None:
    def node(_: State, config: RunnableConfig) -> State:
        assert current_agent(config) is current_agent()
        return {"seen": [config["configurable"][AGENT_KEY].peer_id]}

    assert bind(chain(node).compile(), agent).invoke(start())["seen"] == [agent.peer_id]


@pytest.mark.parametrize("thread", [None, "own-thread"])
def test_graph_called_by_a_node_of_another_keeps_its_identity(
    agent: LatticeAgent, other: LatticeAgent, thread: str | None
) -> None:
    inner = bind(chain(who, who).compile(), other)
    bare = chain(who).compile()

    def outer(_: State, config: RunnableConfig) -> State:
        before = current_agent().peer_id
        handed: Any = {**config, "configurable": {**config["configurable"]}}
        if thread:
            handed["configurable"]["thread_id"] = thread
        within = inner.invoke(start(), handed)["seen"]
        mine = bare.invoke(start(), {"configurable": {"thread_id": "x"}})["seen"]
        return {"seen": [before, *within, *mine, current_agent().peer_id]}

    seen = bind(chain(outer).compile(), agent).invoke(start())["seen"]
    mine, others = agent.peer_id, other.peer_id
    assert seen == [mine, others, others, mine, mine]


def test_two_graphs_at_once_never_mix(agent: LatticeAgent, other: LatticeAgent) -> None:
    graphs = [bind(chain(*[who] * 10).compile(), one) for one in (agent, other)]
    with ThreadPoolExecutor(8) as pool:
        runs = [
            (number % 2, pool.submit(graphs[number % 2].invoke, start())) for number in range(40)
        ]
    for number, run in runs:
        assert set(run.result()["seen"]) == {(agent, other)[number].peer_id}


def test_interleaved_streams_never_mix(agent: LatticeAgent, other: LatticeAgent) -> None:
    streams = [
        bind(chain(who, who, who).compile(), one).stream(start(), stream_mode="values")
        for one in (agent, other)
    ]
    last = list(zip(*streams, strict=True))[-1]
    assert [set(state["seen"]) for state in last] == [{agent.peer_id}, {other.peer_id}]


def test_lifespan_takes_a_graph_or_a_compiled_one_and_nothing_else(lattice_world: World) -> None:
    settings = lattice_world.settings()
    with lattice_lifespan(chain(who), **settings) as g:
        peer = g.invoke(start())["seen"][0]
        assert peer == g.lattice_agent.peer_id
    assert not lattice_world.knows(peer)
    with pytest.raises(TypeError, match="StateGraph"):
        lattice_lifespan(lambda: None, **settings)


def test_identity_is_named_after_the_graph(lattice_world: World) -> None:
    settings = lattice_world.settings(agent_name=None)
    with lattice_lifespan(chain(who).compile(name="researcher"), **settings) as g:
        path = f"/api/v1/peers/{g.lattice_agent.peer_id}"
        assert lattice_world.request("GET", path)["name"] == "researcher"


def test_graph_used_after_its_lifespan_says_so(lattice_world: World) -> None:
    def fetch(_: State) -> State:
        current_agent().connect("github-tools.lattice", 80).close()
        return {"seen": ["reached"]}

    with lattice_lifespan(chain(fetch), **lattice_world.settings()) as g:
        assert g.invoke(start())["seen"] == ["reached"]
    with pytest.raises(IdentityClosed):
        g.invoke(start())
