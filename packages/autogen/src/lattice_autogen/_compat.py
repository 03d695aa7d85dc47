"""Which generation of AutoGen is installed."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["GENERATIONS", "generation"]

# The generation's module here, and the module of AutoGen's that tells that it is installed.
GENERATIONS = {"classic": "autogen", "agentchat": "autogen_agentchat", "ag2": "ag2"}


def generation() -> str:
    """The generation that is installed: ``classic``, ``agentchat`` or ``ag2``.

    Raises:
        ImportError: none is, or more than one.
    """
    found = [name for name, module in GENERATIONS.items() if find_spec(module) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        modules = " or ".join(f"lattice_autogen.{name}" for name in found)
        raise ImportError(
            f"lattice_autogen cannot tell which AutoGen is meant: {' and '.join(found)} are "
            f"installed. Import from {modules} instead"
        )
    extras = ", ".join(f"lattice-autogen[{name}]" for name in GENERATIONS)
    raise ImportError(
        f"lattice_autogen needs AutoGen, and no generation of it is installed. Install one of "
        f"{extras}: ag2 before 1 or pyautogen before 0.10, autogen-agentchat 0.7, ag2 from 1 on"
    )
