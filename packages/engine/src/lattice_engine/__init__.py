"""The Lattice data plane: one small Go program over wireguard-go and gVisor netstack.

Names are imported when they are first used: programs in a hurry need few of them.
"""

from importlib import import_module

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from typing import Any

    from lattice_engine._client import EngineClient
    from lattice_engine._errors import EngineError, EngineMissing
    from lattice_engine._find import engine_path
    from lattice_engine._place import private_directory, remove_private_directory
    from lattice_engine._process import EngineProcess
    from lattice_engine._sockets import namespace_socket

__all__ = [
    "EngineClient",
    "EngineError",
    "EngineMissing",
    "EngineProcess",
    "engine_path",
    "namespace_socket",
    "private_directory",
    "remove_private_directory",
]

_HOME = {
    "EngineClient": "_client",
    "EngineError": "_errors",
    "EngineMissing": "_errors",
    "EngineProcess": "_process",
    "engine_path": "_find",
    "namespace_socket": "_sockets",
    "private_directory": "_place",
    "remove_private_directory": "_place",
}


def __getattr__(name: str) -> "Any":
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
