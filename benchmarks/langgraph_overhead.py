"""What an identity costs a LangGraph run, as one JSON object.

    python -m benchmarks.langgraph_overhead [--steps 1000] [--rounds 31]

A graph whose one node runs 1,000 times, bare and under an identity, in one process: rounds
alternate, so that what else the machine does falls on both alike. Under an identity the node asks
for its agent in each step.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import operator
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph

from benchmarks.fabrics import fabric
from lattice_langgraph import bind, current_agent


class State(TypedDict):
    number: Annotated[int, operator.add]


def build(node: Callable[[State], Any], steps: int) -> Any:
    graph = StateGraph(State)
    graph.add_node("step", node)
    graph.add_edge(START, "step")
    graph.add_conditional_edges(
        "step", lambda state: END if state["number"] >= steps else "step", [END, "step"]
    )
    return graph.compile()


def step(_: State) -> State:
    return {"number": 1}


def step_that_asks(_: State) -> State:
    if not current_agent().peer_id:
        raise RuntimeError("the node has no agent")
    return {"number": 1}


async def async_step(_: State) -> State:
    return {"number": 1}


async def async_step_that_asks(_: State) -> State:
    return step_that_asks(_)


def once(graph: Any, steps: int, *, is_async: bool) -> tuple[float, float]:
    """Seconds for one run: processor time of this process, and by the clock on the wall."""
    config = {"recursion_limit": steps + 10}
    gc.collect()
    started, began = time.process_time(), time.perf_counter()
    if is_async:
        result = asyncio.run(graph.ainvoke({"number": 0}, config))
    else:
        result = graph.invoke({"number": 0}, config)
    took = time.process_time() - started, time.perf_counter() - began
    if result["number"] != steps:
        raise RuntimeError(f"{result['number']} steps instead of {steps}")
    return took


def compare(graphs: dict[str, Any], steps: int, rounds: int, *, is_async: bool) -> dict[str, Any]:
    """Alternating rounds of all graphs; each against the first one of the same round."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in graphs}
    for graph in graphs.values():
        once(graph, steps, is_async=is_async)
    for number in range(rounds):
        names = list(graphs) if number % 2 else list(reversed(graphs))
        for name in names:
            took[name].append(once(graphs[name], steps, is_async=is_async))
    return {
        clock: compared({name: [one[which] for one in values] for name, values in took.items()})
        for which, clock in enumerate(("processor_time", "wall_time"))
    }


def compared(took: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and spread in ms, and how far each is from the first one."""
    (bare, of), *_ = took.items()
    report: dict[str, Any] = {}
    for name, values in took.items():
        report[name] = {
            "median_ms": round(statistics.median(values) * 1000, 1),
            "min_ms": round(min(values) * 1000, 1),
            "max_ms": round(max(values) * 1000, 1),
        }
        if name != bare:
            medians = statistics.median(values) / statistics.median(of)
            ratios = [(value / other - 1) * 100 for value, other in zip(values, of, strict=True)]
            quartiles = statistics.quantiles(ratios, n=4)
            report[name] |= {
                "overhead_of_medians_percent": round((medians - 1) * 100, 2),
                "overhead_by_round_quartiles_percent": [round(one, 2) for one in quartiles],
            }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    from lattice_sdk import LatticeAgent

    with fabric() as (_, settings), LatticeAgent(**settings) as agent:

        def graphs(bare: Any, asking: Any) -> dict[str, Any]:
            return {
                "bare": build(bare, arguments.steps),
                # How far apart two runs of one thing are.
                "bare_again": build(bare, arguments.steps),
                "identity": bind(build(bare, arguments.steps), agent),
                "identity_asked_for_in_each_step": bind(build(asking, arguments.steps), agent),
            }

        sync, later = graphs(step, step_that_asks), graphs(async_step, async_step_that_asks)
        result = {
            "machine": {
                "kernel": platform.release(),
                "cpus": os.cpu_count(),
                "load": os.getloadavg()[0],
            },
            "steps": arguments.steps,
            "rounds": arguments.rounds,
            "invoke": compare(sync, arguments.steps, arguments.rounds, is_async=False),
            "ainvoke": compare(later, arguments.steps, arguments.rounds, is_async=True),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
