"""A whole LangGraph program in a sandbox: ``lattice exec -- python my_graph.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lattice_sdk.testing import World

TOOL = "http://github-tools.lattice/"
PROGRAM = """
import asyncio, json, operator, os, subprocess, sys, urllib.request
from typing import Annotated, TypedDict
from langgraph.graph import END, START, StateGraph
from lattice_langgraph import current_agent, lattice_lifespan

TOOL, OUTSIDE = sys.argv[1:]

class State(TypedDict):
    seen: Annotated[list, operator.add]

async def by_the_agent(_):
    agent = current_agent()
    async with agent.async_http_client() as http:
        answer = await http.get(TOOL)
    return {"seen": [agent.peer_id, agent.backend, answer.json()["client"]]}

def by_a_library(_):
    with urllib.request.urlopen(TOOL, timeout=10) as answer:
        return {"seen": [json.load(answer)["client"]]}

def by_a_program(_):
    done = subprocess.run(["curl", "-sS", TOOL], capture_output=True, check=True)
    return {"seen": [json.loads(done.stdout)["client"]]}

def past_the_agent(_):
    try:
        urllib.request.urlopen(OUTSIDE, timeout=10)
    except OSError as error:
        return {"seen": ["refused" if "refused" in str(error).lower() else str(error)]}
    return {"seen": ["reached"]}

async def main():
    graph = StateGraph(State)
    steps = [by_the_agent, by_a_library, by_a_program, past_the_agent]
    for step in steps:
        graph.add_node(step.__name__, step)
    for one, other in zip([START, *(s.__name__ for s in steps)],
                          [*(s.__name__ for s in steps), END]):
        graph.add_edge(one, other)
    async with lattice_lifespan(graph, agent_name="other", policy_preset="coordinator") as g:
        return (await g.ainvoke({"seen": []}))["seen"]

facts = json.load(open(os.environ["LATTICE_SANDBOX"]))
print(json.dumps([facts, asyncio.run(main())]))
"""


def run(world: World, home: Path, *line: str) -> Any:
    done = subprocess.run(
        [*line, sys.executable, str(home / "my_graph.py"), TOOL, f"{world.server}/healthz"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LATTICE_SERVER": world.server,
            "LATTICE_TOKEN": world.token,
            "LATTICE_ISOLATION": "required",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_graph_finds_its_identity_and_nothing_in_it_has_another_network(
    lattice_world: World, tmp_path: Path
) -> None:
    (tmp_path / "my_graph.py").write_text(PROGRAM)
    before = lattice_world.peers()
    lattice = str(Path(sys.executable).with_name("lattice"))
    facts, seen = run(lattice_world, tmp_path, lattice, "exec", "--name", "graph", "--")
    own = facts["overlayIP"]
    assert seen == [facts["peerId"], "ambient", own, own, own, "refused"]
    # It asked for another name and preset: the identity is the sandbox's.
    assert (facts["agentName"], facts["policyPreset"]) == ("graph", "sandboxed")
    assert lattice_world.peers() <= before
