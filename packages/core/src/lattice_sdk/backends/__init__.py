"""Tunnel backends: what carries an agent's traffic. Plugins add more, see :mod:`..hookspecs`."""

from lattice_sdk.backends.base import (
    Isolation,
    NameSource,
    Proxy,
    Revoke,
    Tunnel,
    TunnelBackend,
    TunnelSpec,
)
from lattice_sdk.backends.choice import WANTED, Choice, Wanted, choose

__all__ = [
    "WANTED",
    "Choice",
    "Isolation",
    "NameSource",
    "Proxy",
    "Revoke",
    "Tunnel",
    "TunnelBackend",
    "TunnelSpec",
    "Wanted",
    "choose",
]
