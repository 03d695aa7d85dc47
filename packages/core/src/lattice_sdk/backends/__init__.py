"""Tunnel backends: what carries an agent's traffic. Plugins add more, see :mod:`..hookspecs`."""

from lattice_sdk.backends.base import Proxy, Revoke, Tunnel, TunnelBackend, TunnelSpec
from lattice_sdk.backends.choice import choose

__all__ = ["Proxy", "Revoke", "Tunnel", "TunnelBackend", "TunnelSpec", "choose"]
