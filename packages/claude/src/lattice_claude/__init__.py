"""A network identity for the Claude Agent SDK, and for the ``claude`` command.

Names are imported when they are first used: ``lattice-claude`` does without the SDK, which takes
longer to import than the command to start.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lattice_claude.adapter import (
        IdentifiedClient,
        IdentifiedOptions,
        claude_options,
        current_agent,
        lattice_claude_client,
        lattice_query,
    )

__all__ = [
    "IdentifiedClient",
    "IdentifiedOptions",
    "claude_options",
    "current_agent",
    "lattice_claude_client",
    "lattice_query",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lattice_claude import adapter

    return getattr(adapter, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
