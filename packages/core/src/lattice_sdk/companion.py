"""What an identity does beside its tunnel, for as long as it lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lattice_sdk.backends import Tunnel
    from lattice_sdk.lifecycle import Lifecycle


class Companion:
    """Told of each new tunnel and of the end. Lives in the background loop.

    Apart from the faces: a lifecycle that held its face would keep it from being collected.

    Attributes:
        router: whether its tunnel takes flows for other addresses than its own.
    """

    router = False

    async def tunnel_up(self, life: Lifecycle, tunnel: Tunnel) -> None:
        """A new tunnel is proven, and counts as up after this. Also after each rebuild.

        Raises:
            LatticeError: the tunnel is of no use; it is taken down again.
        """
        del life, tunnel

    async def tunnel_down(self) -> None:
        """The identity ends; there will be no further tunnel. Again without effect."""
