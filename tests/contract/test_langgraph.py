"""The LangGraph adapter, held to the contract."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypedDict, TypeVar

from langgraph.graph import END, START, StateGraph

from lattice_langgraph import current_agent, lattice_lifespan
from lattice_sdk import LatticeAgent
from lattice_sdk.testing import Adapter, Capability
from lattice_sdk.testing.contract import AdapterContract

T = TypeVar("T")


class State(TypedDict):
    result: Any


def one_node(node: Callable[..., Any]) -> StateGraph[Any, Any, Any, Any]:
    graph = StateGraph(State)
    graph.add_node("work", node)
    graph.add_edge(START, "work")
    graph.add_edge("work", END)
    return graph


class LangGraph(Adapter):
    name = "langgraph"
    capabilities = frozenset({Capability.ASYNC, Capability.HOLD, Capability.EXCEPTIONS})

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        graph = one_node(lambda _: {"result": work(current_agent())})
        with lattice_lifespan(graph, **settings) as g:
            return g.invoke({"result": None})["result"]

    async def arun(
        self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], Awaitable[T]]
    ) -> T:
        async def node(_: State) -> State:
            return {"result": await work(current_agent())}

        async with lattice_lifespan(one_node(node), **settings) as g:
            return (await g.ainvoke({"result": None}))["result"]

    def plain(self, work: Callable[[], T]) -> T:
        return one_node(lambda _: {"result": work()}).compile().invoke({"result": None})["result"]

    def hold(self, settings: Mapping[str, Any]) -> tuple[object, Callable[[], LatticeAgent]]:
        g = lattice_lifespan(one_node(lambda _: {}), **settings).__enter__()
        reference = weakref.ref(g.lattice_agent)

        def agent() -> LatticeAgent:
            found = reference()
            assert found is not None
            return found

        return g, agent


class TestLangGraph(AdapterContract):
    adapter = LangGraph
