"""A network identity for LangGraph graphs."""

from lattice_langgraph.adapter import IdentifiedGraph, bind, current_agent, lattice_lifespan

__all__ = ["IdentifiedGraph", "bind", "current_agent", "lattice_lifespan"]
