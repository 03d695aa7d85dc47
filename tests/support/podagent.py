"""An agent as anybody writes one, for the pod tests: LangGraph and httpx, not a word of Lattice.

``VISIT`` lists URLs; each round of the graph gets them all and prints a JSON line for each.
``ROUNDS`` and ``SECONDS`` say when it has done enough, ``STATUS`` with which exit status it ends.
"""

import json
import os
import sys
import time
from typing import TypedDict

import httpx
from langgraph.graph import END, START, StateGraph


class State(TypedDict):
    rounds: int


def visit(state: State) -> State:
    for url in os.environ["VISIT"].split():
        told: dict[str, object] = {"url": url}
        try:
            answer = httpx.get(url, timeout=10)
            told |= {"status": answer.status_code, "answer": answer.text[:400]}
        except httpx.HTTPError as error:
            told["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(told), flush=True)
    time.sleep(float(os.environ.get("PAUSE", "0")))
    return {"rounds": state["rounds"] + 1}


began = time.monotonic()


def enough(state: State) -> str:
    done = state["rounds"] >= int(os.environ.get("ROUNDS", "1"))
    late = time.monotonic() - began >= float(os.environ.get("SECONDS", "0"))
    return END if done and late else "visit"


graph = StateGraph(State)
graph.add_node("visit", visit)
graph.add_edge(START, "visit")
graph.add_conditional_edges("visit", enough)
graph.compile().invoke({"rounds": 0}, {"recursion_limit": 1_000_000})
sys.exit(int(os.environ.get("STATUS", "0")))
