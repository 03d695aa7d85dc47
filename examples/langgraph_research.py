"""A LangGraph agent that asks every tool it may, and one that it may not.

Without a model, so that it runs offline. In two other terminals:

    lattice dev                 # prints what to export, here too
    lattice connect github-tools --listen 80 --to 127.0.0.1:9000

Then: python examples/langgraph_research.py "what is new?"
"""

from __future__ import annotations

import operator
import sys
from typing import Annotated, Any, TypedDict

import httpx
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from lattice_langgraph import current_agent, lattice_lifespan
from lattice_sdk import Refused

# Where a prompt injection would send an agent on a cloud machine: to the machine's credentials.
INJECTED = "http://169.254.169.254/latest/meta-data/"


class Research(TypedDict):
    """The graph's state."""

    question: str
    findings: Annotated[list[str], operator.add]


class Source(TypedDict):
    """What one branch is to ask."""

    question: str
    url: str


def plan(state: Research) -> list[Send]:
    """A branch for each service of the agent's policy, and one for what was injected."""
    services = current_agent().services
    urls = [f"http://{service.hostnames[0]}/" for service in services if service.hostnames]
    return [Send("ask", {"question": state["question"], "url": url}) for url in (*urls, INJECTED)]


def ask(source: Source) -> dict[str, Any]:
    """Ask one source; a refusal is a finding, too."""
    url = source["url"]
    with current_agent().http_client(timeout=20) as http:
        try:
            answer = http.get(url, params={"q": source["question"]}).raise_for_status()
        except Refused as refusal:
            return {"findings": [f"{url} is refused: {refusal}"]}
        except httpx.HTTPError as error:
            return {"findings": [f"{url} fails: {error}"]}
    return {"findings": [f"{url} answers: {answer.text[:200]}"]}


def main() -> None:
    """Run the graph under an identity and show each step as it comes."""
    graph = StateGraph(Research)
    graph.add_node("ask", ask)
    graph.add_conditional_edges(START, plan, ["ask"])
    graph.add_edge("ask", END)
    question = " ".join(sys.argv[1:]) or "what is new?"
    config: Any = {"configurable": {"thread_id": "one"}}
    with lattice_lifespan(
        graph.compile(name="research", checkpointer=InMemorySaver()), policy_preset="sandboxed"
    ) as g:
        agent = g.lattice_agent
        print(f"research is {agent.peer_id}, {agent.overlay_ip}")
        for step in g.stream({"question": question, "findings": []}, config, stream_mode="updates"):
            print(*step["ask"]["findings"])
        print(len(g.get_state(config).values["findings"]), "findings are in the checkpoint")


if __name__ == "__main__":
    main()
