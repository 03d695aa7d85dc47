"""A network identity for AutoGen's agents, of the generation that is installed.

Every generation has :func:`current_agent`. Beside it there are

- classic (``ag2`` before 1, ``pyautogen`` before 0.10): ``LatticeConversableAgent``,
  ``LatticeMixin``, ``LatticeCommandLineCodeExecutor``;
- ``autogen-agentchat``: ``LatticeChatAgent``, ``LatticeMixin``, ``LatticeCommandLineCodeExecutor``;
- ``ag2`` from 1 on: ``LatticePlugin``.

They are imported when they are first used, from :mod:`lattice_autogen.classic`,
:mod:`lattice_autogen.agentchat` and :mod:`lattice_autogen.ag2`.
"""

from importlib import import_module
from typing import Any

from lattice_autogen._compat import generation
from lattice_autogen.adapter import current_agent

__all__ = ["current_agent"]

_HOMES = {
    "LatticeChatAgent": ("agentchat",),
    "LatticeCommandLineCodeExecutor": ("classic", "agentchat"),
    "LatticeConversableAgent": ("classic",),
    "LatticeMixin": ("classic", "agentchat"),
    "LatticePlugin": ("ag2",),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    installed = generation()
    if installed not in _HOMES[name]:
        raise ImportError(
            f"{name} is for another generation of AutoGen ({' or '.join(_HOMES[name])}) than the "
            f"one that is installed ({installed}); see lattice_autogen.__doc__"
        )
    return getattr(import_module(f"{__name__}.{installed}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
