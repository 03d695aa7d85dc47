"""A network identity for the Claude Agent SDK, and for the ``claude`` command."""

from lattice_claude.adapter import (
    IdentifiedOptions,
    claude_options,
    current_agent,
    lattice_claude_client,
    lattice_query,
)

__all__ = [
    "IdentifiedOptions",
    "claude_options",
    "current_agent",
    "lattice_claude_client",
    "lattice_query",
]
