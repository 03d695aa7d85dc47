"""What a graph gives under an identity is what it gives without one, in each way to run it."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.config import get_stream_writer
from langgraph.errors import GraphRecursionError
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Send, interrupt
from typing_extensions import TypedDict

from lattice_langgraph import bind, current_agent
from lattice_langgraph.adapter import AGENT_KEY
from lattice_sdk import LatticeAgent

# What differs from run to run, and nothing else: ids and times.
VOLATILE = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # of messages, tasks, checkpoints
    r"|\b[0-9a-f]{32}\b"  # of interrupts
    r"|\d{4}-\d\d-\d\dT[\d:.]+\+00:00"
    r"|(?<=lc_run--)\S+?(?=['-])"
)
MODES: list[Any] = [
    "values", "updates", "custom", "messages", "debug", "tasks", "checkpoints", "tools",
    ["values", "updates", "custom"],
]  # fmt: skip


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    seen: Annotated[list[str], operator.add]


@tool
def lookup(word: str) -> str:
    """Look a word up."""
    get_stream_writer()({"looked_up": word})
    return word.upper()


def talking() -> StateGraph[Any, Any, Any, Any]:
    """A model, a tool, a subgraph and parallel branches."""

    def ask(_: State) -> Any:
        get_stream_writer()({"half": 1})
        answer = GenericFakeChatModel(messages=iter([AIMessage("let me see")])).invoke("?")
        return {"messages": [answer], "seen": ["ask"]}

    def call(_: State) -> Any:
        wanted = {"name": "lookup", "args": {"word": "lattice"}, "id": "call-1"}
        return {"messages": [AIMessage("", tool_calls=[wanted])]}

    def branch(state: Any) -> Any:
        return {"seen": [f"branch {state['number']}"]}

    inner = StateGraph(State)
    inner.add_node("inside", lambda _: {"seen": ["inside"]})
    inner.add_edge(START, "inside")
    graph = StateGraph(State)
    graph.add_node("ask", ask)
    graph.add_node("tools", ToolNode([lookup]))
    graph.add_node("subgraph", inner.compile())
    graph.add_node("branch", branch)
    graph.add_edge(START, "ask")
    graph.add_node("call", call)
    graph.add_edge("ask", "call")
    graph.add_edge("call", "tools")
    graph.add_edge("tools", "subgraph")
    graph.add_conditional_edges(
        "subgraph", lambda _: [Send("branch", {"number": number}) for number in range(3)]
    )
    graph.add_edge("branch", END)
    return graph


def start() -> Any:
    return {"messages": [("user", "what is a lattice?")], "seen": []}


def same(*found: Any) -> list[str]:
    """What was found, in an order of its own: parallel branches have none."""
    return sorted(VOLATILE.sub("…", repr(one)) for one in found)


def on(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


@pytest.mark.parametrize("subgraphs", [False, True])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_stream_gives_what_the_bare_graph_gives(
    agent: LatticeAgent, mode: Any, subgraphs: bool
) -> None:
    def steps(make: Callable[[Any], Any]) -> list[str]:
        graph = make(talking().compile(checkpointer=InMemorySaver()))
        options = {"stream_mode": mode, "subgraphs": subgraphs}
        return same(*graph.stream(start(), on("t"), **options))

    bare = steps(lambda graph: graph)
    assert bare
    assert steps(lambda graph: bind(graph, agent)) == bare


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES, ids=str)
async def test_astream_gives_what_the_bare_graph_gives(agent: LatticeAgent, mode: Any) -> None:
    async def steps(make: Callable[[Any], Any]) -> list[str]:
        graph = make(talking().compile(checkpointer=InMemorySaver()))
        return same(*[s async for s in graph.astream(start(), on("t"), stream_mode=mode)])

    bare = await steps(lambda graph: graph)
    assert bare
    assert await steps(lambda graph: bind(graph, agent)) == bare


@pytest.mark.anyio
async def test_events_are_those_of_the_bare_graph(agent: LatticeAgent) -> None:
    async def events(make: Callable[[Any], Any]) -> list[str]:
        graph = make(talking().compile(checkpointer=InMemorySaver()))
        return same(*[one async for one in graph.astream_events(start(), on("t"), version="v2")])

    bare = await events(lambda graph: graph)
    assert any("on_tool_end" in event for event in bare)
    assert await events(lambda graph: bind(graph, agent)) == bare


@pytest.mark.filterwarnings("ignore")  # LangGraph calls its third protocol experimental
def test_third_protocol_of_events_works_under_an_identity(agent: LatticeAgent) -> None:
    def final(make: Callable[[Any], Any]) -> Any:
        graph = make(talking().compile(checkpointer=InMemorySaver()))
        return graph.stream_events(start(), on("t"), version="v3").output

    assert same(final(lambda graph: bind(graph, agent))) == same(final(lambda graph: graph))


@pytest.mark.anyio
async def test_results_in_each_way_are_those_of_the_bare_graph(agent: LatticeAgent) -> None:
    def graphs() -> Iterator[Any]:
        yield talking().compile()
        yield bind(talking().compile(), agent)

    def sorted_seen(result: Any) -> Any:
        return same(*result["messages"], *result["seen"])

    bare, g = graphs()
    expected = sorted_seen(bare.invoke(start()))
    assert sorted_seen(g.invoke(start())) == expected
    assert sorted_seen(await g.ainvoke(start())) == expected
    assert [sorted_seen(one) for one in g.batch([start()] * 3)] == [expected] * 3
    assert [sorted_seen(one) for one in await g.abatch([start()] * 3)] == [expected] * 3
    done = [one async for one in g.abatch_as_completed([start()] * 3)]
    assert sorted(number for number, _ in done) == [0, 1, 2]
    assert same(*g.transform(iter([start()]))) == same(*bare.transform(iter([start()])))
    assert g.get_input_jsonschema() == bare.get_input_jsonschema()
    assert g.get_output_jsonschema() == bare.get_output_jsonschema()
    assert [name for name, _ in g.get_subgraphs()] == [name for name, _ in bare.get_subgraphs()]
    assert (g | sorted_seen).invoke(start()) == expected


def asking(*, nested: Callable[[Any], Any] | None = None) -> StateGraph[Any, Any, Any, Any]:
    """Asks a person, itself or in a graph that its node calls."""

    def ask(_: State) -> Any:
        return {"seen": [interrupt("continue?"), current_agent().peer_id]}

    inner = StateGraph(State)
    inner.add_node("ask", ask)
    inner.add_edge(START, "ask")
    if nested is None:
        return inner
    called = nested(inner.compile())

    def call(_: State) -> Any:
        return {"seen": called.invoke({"messages": [], "seen": []})["seen"]}

    outer = StateGraph(State)
    outer.add_node("call", call)
    outer.add_edge(START, "call")
    return outer


@pytest.mark.anyio
async def test_interrupts_resume_on_async_sqlite(agent: LatticeAgent, tmp_path: Any) -> None:
    path = str(tmp_path / "checkpoints.db")
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        g = bind(asking().compile(checkpointer=saver), agent)
        asked = await g.ainvoke(start(), on("t"))
        assert asked["__interrupt__"][0].value == "continue?"
        assert (await g.aget_state(on("t"))).next == ("ask",)
        await g.aupdate_state(on("t"), {"seen": ["edited"]}, as_node="__start__")
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        g = bind(asking().compile(checkpointer=saver), agent)
        done = await g.ainvoke(Command(resume="yes"), on("t"))
        assert done["seen"] == ["edited", "yes", agent.peer_id]
        history = [snapshot async for snapshot in g.aget_state_history(on("t"))]
        assert len(history) > 2
        assert AGENT_KEY not in repr(history)


def test_interrupt_of_a_graph_that_a_node_calls_reaches_the_caller(
    agent: LatticeAgent, other: LatticeAgent
) -> None:
    """It is a subgraph also when the node hands no config on."""
    outer = asking(nested=lambda graph: bind(graph, other))
    g = bind(outer.compile(checkpointer=InMemorySaver()), agent)
    assert "__interrupt__" in g.invoke(start(), on("t"))
    assert g.invoke(Command(resume="yes"), on("t"))["seen"] == ["yes", other.peer_id]


def test_settings_that_are_bound_to_the_graph_are_kept(agent: LatticeAgent) -> None:
    g = bind(asking().compile(checkpointer=InMemorySaver()), agent).with_config(
        configurable={"thread_id": "bound"}, tags=["tagged"], recursion_limit=7
    )
    assert "__interrupt__" in g.invoke(start())
    assert g.get_state(on("bound")).next == ("ask",)


def test_static_breakpoints_and_time_travel(agent: LatticeAgent) -> None:
    g = bind(talking().compile(checkpointer=InMemorySaver()), agent)
    g.invoke(start(), on("t"), interrupt_before=["tools"])
    before = g.get_state(on("t"))
    assert before.next == ("tools",)
    first = g.invoke(None, on("t"))
    again = g.invoke(None, before.config)
    assert sorted(first["seen"]) == sorted(again["seen"])


def test_failure_and_limit_are_the_graphs_own(agent: LatticeAgent) -> None:
    class WorkError(Exception):
        pass

    def fail(_: State) -> Any:
        raise WorkError("on purpose")

    failing = StateGraph(State)
    failing.add_node("fail", fail)
    failing.add_edge(START, "fail")
    with pytest.raises(WorkError, match="on purpose"):
        bind(failing.compile(), agent).invoke(start())
    endless = StateGraph(State)
    endless.add_node("again", lambda _: {"seen": ["x"]})
    endless.add_edge(START, "again")
    endless.add_edge("again", "again")
    with pytest.raises(GraphRecursionError):
        bind(endless.compile(), agent).invoke(start(), {"recursion_limit": 5})


def test_functional_graph_and_its_tasks_have_the_identity(agent: LatticeAgent) -> None:
    @task
    def inside(number: int) -> str:
        return f"{number} {current_agent().peer_id}"

    @entrypoint(checkpointer=InMemorySaver())
    def work(count: int) -> list[str]:
        return [future.result() for future in [inside(number) for number in range(count)]]

    g = bind(work, agent)
    assert g.invoke(3, on("t")) == [f"{number} {agent.peer_id}" for number in range(3)]
