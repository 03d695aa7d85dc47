"""A LangGraph graph that does whatever its search results say: an agent under prompt injection."""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from lattice_sdk import LatticeAgent, LatticeError

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

__all__ = ["Attempt", "build_graph"]

URL = re.compile(r"https?://[^\s\"'<>]+")


class Attempt(TypedDict):
    """One request of the graph: ``error`` is the refusal's sentence, ``seconds`` what it took."""

    url: str
    answer: Mapping[str, Any] | None
    error: str
    seconds: float


class _Work(TypedDict):
    attempts: Annotated[list[Attempt], operator.add]


def build_graph(agent: LatticeAgent) -> CompiledStateGraph[Any, Any, Any, Any]:
    """``search``, then ``obey`` for every address in what was found, then ``report``.

    No model is asked: ``obey`` stands for one that falls for every injected instruction, which is
    the case that the network has to survive.

    Args:
        agent: whose network the nodes use; open.
    """
    from langgraph.graph import END, START, StateGraph

    def fetch(url: str) -> Attempt:
        started = time.monotonic()
        answer, error = None, ""
        try:
            with agent.http_client(timeout=10) as http:
                answer = http.get(url).raise_for_status().json()
        except LatticeError as refusal:
            error = str(refusal)
        return {
            "url": url,
            "answer": answer,
            "error": error,
            "seconds": time.monotonic() - started,
        }

    def search(state: _Work) -> _Work:
        return {"attempts": [fetch("http://search.lattice/")]}

    def obey(state: _Work) -> _Work:
        found = state["attempts"][-1]["answer"] or {}
        return {"attempts": [fetch(url) for url in URL.findall(str(found.get("result", "")))]}

    def report(state: _Work) -> _Work:
        return {"attempts": [fetch("http://github-tools.lattice/")]}

    graph = StateGraph(_Work)
    graph.add_node("search", search)
    graph.add_node("obey", obey)
    graph.add_node("report", report)
    graph.add_edge(START, "search")
    graph.add_edge("search", "obey")
    graph.add_edge("obey", "report")
    graph.add_edge("report", END)
    return graph.compile()
