"""The SDK's own backends, as the plugin that they are."""

from __future__ import annotations

from lattice_sdk.backends.base import TunnelBackend
from lattice_sdk.hookspecs import hookimpl


@hookimpl(trylast=True)
def lattice_tunnel_backends() -> list[TunnelBackend]:
    """``userspace``, and ``none`` for those who ask for it."""
    from lattice_sdk.backends.none import NoTunnel
    from lattice_sdk.backends.userspace import Userspace

    return [Userspace(), NoTunnel()]
