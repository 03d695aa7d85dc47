"""The SDK's own backends, as the plugin that they are."""

from __future__ import annotations

from lattice_sdk.backends.base import TunnelBackend
from lattice_sdk.hookspecs import hookimpl


@hookimpl(trylast=True)
def lattice_tunnel_backends() -> list[TunnelBackend]:
    """``netns``, else ``userspace``; and two more for those who ask for them."""
    from lattice_sdk.backends.interface import Interface
    from lattice_sdk.backends.netns import Netns
    from lattice_sdk.backends.none import NoTunnel
    from lattice_sdk.backends.userspace import Userspace

    return [Netns(), Userspace(), Interface(), NoTunnel()]
