"""The Lattice data plane: one small Go program over wireguard-go and gVisor netstack."""

from lattice_engine._client import EngineClient
from lattice_engine._errors import EngineError, EngineMissing
from lattice_engine._find import engine_path
from lattice_engine._process import EngineProcess
from lattice_engine._sockets import namespace_socket

__all__ = [
    "EngineClient",
    "EngineError",
    "EngineMissing",
    "EngineProcess",
    "engine_path",
    "namespace_socket",
]
