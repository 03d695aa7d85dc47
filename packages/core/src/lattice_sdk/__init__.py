"""The life of one agent identity: enroll, tunnel up, renew, tear down.

Names are imported when they are first used, so that ``import lattice_sdk`` costs next to nothing.
"""

from importlib import import_module

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from typing import Any

    from lattice_sdk.agent import LatticeAgent
    from lattice_sdk.client import ControlPlane
    from lattice_sdk.connector import NetworkConnector, ServiceConnector
    from lattice_sdk.delegation import Delegation
    from lattice_sdk.egress import EgressConnector
    from lattice_sdk.errors import (
        AddressPoolExhausted,
        AuthenticationFailed,
        BackendUnavailable,
        ConfigurationError,
        DestinationUnreachable,
        EgressUnavailable,
        EngineFailed,
        GatewayUnavailable,
        IdentityClosed,
        IdentityExpired,
        InvalidRequest,
        LatticeError,
        NotFound,
        NotPermitted,
        Refused,
        ServerError,
        ServerUnreachable,
        TunnelFailed,
        UnexpectedAnswer,
    )
    from lattice_sdk.hookspecs import hookimpl
    from lattice_sdk.identity import Identity
    from lattice_sdk.schedule import State

__all__ = [
    "AddressPoolExhausted",
    "AuthenticationFailed",
    "BackendUnavailable",
    "ConfigurationError",
    "ControlPlane",
    "Delegation",
    "DestinationUnreachable",
    "EgressConnector",
    "EgressUnavailable",
    "EngineFailed",
    "GatewayUnavailable",
    "Identity",
    "IdentityClosed",
    "IdentityExpired",
    "InvalidRequest",
    "LatticeAgent",
    "LatticeError",
    "NetworkConnector",
    "NotFound",
    "NotPermitted",
    "Refused",
    "ServerError",
    "ServerUnreachable",
    "ServiceConnector",
    "State",
    "TunnelFailed",
    "UnexpectedAnswer",
    "hookimpl",
]

_HOME = {
    "LatticeAgent": "agent",
    "ControlPlane": "client",
    "Delegation": "delegation",
    "NetworkConnector": "connector",
    "ServiceConnector": "connector",
    "EgressConnector": "egress",
    "Identity": "identity",
    "State": "schedule",
    "hookimpl": "hookspecs",
}


def __getattr__(name: str) -> "Any":
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
