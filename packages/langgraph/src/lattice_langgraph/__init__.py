"""A network identity for LangGraph graphs."""

from lattice_langgraph.adapter import IdentifiedGraph, bind, current_agent, lattice_lifespan
from lattice_langgraph.server import server_agent, server_graph, server_lifespan

__all__ = [
    "IdentifiedGraph",
    "bind",
    "current_agent",
    "lattice_lifespan",
    "server_agent",
    "server_graph",
    "server_lifespan",
]
