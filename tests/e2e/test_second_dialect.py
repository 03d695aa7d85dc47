"""An adapter against a server of the second dialect, with a tunnel and without."""

from __future__ import annotations

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from conftest import World
from lattice_langgraph import current_agent, lattice_lifespan
from support.dialect import TOKEN, DialectFront, DialectServer
from support.waiting import wait_for
from support.wrapped import GRANTED


class State(TypedDict):
    seen: Any


def graph(node: Any) -> StateGraph[Any, Any, Any, Any]:
    made = StateGraph(State)
    made.add_node("work", node)
    made.add_edge(START, "work")
    made.add_edge("work", END)
    return made


def settings(server: DialectServer, **more: Any) -> dict[str, Any]:
    of_server = {"server": server.url, "token": TOKEN, "workspace_id": "ws"}
    return {**of_server, "agent_name": "worker", **more}


def test_graph_has_an_identity_where_no_config_is_handed_out() -> None:
    with DialectServer() as server:
        working = graph(lambda _: {"seen": current_agent().peer_id})
        with lattice_lifespan(working, **settings(server, backend="none")) as g:
            assert [g.invoke({"seen": None})["seen"]] == list(server.live)
        assert server.live == {}


def test_graph_uses_its_tunnel_also_after_its_identity_was_replaced(world: World) -> None:
    """There is no renewal: it has a new identity in time, and switches over."""

    def work(_: State) -> State:
        agent = current_agent()
        with agent.http_client(timeout=60) as http:
            client = http.get(GRANTED).raise_for_status().json()["client"]
        return {"seen": (agent.peer_id, agent.overlay_ip, client)}

    with DialectFront(world.fabric) as server:
        with lattice_lifespan(graph(work), **settings(server, ttl="20s")) as g:
            first, address, client = g.invoke({"seen": None})["seen"]
            assert client == address
            wait_for("its successor", lambda: first in server.deleted)
            second, address, client = g.invoke({"seen": None})["seen"]
            assert client == address
            assert second != first
        assert server.live == {}
