"""What an identity reaches, learned anew while it lives: policy may have changed since."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from lattice_sdk.clock import now
from lattice_sdk.errors import IdentityClosed, LatticeError

if TYPE_CHECKING:
    from lattice_sdk.lifecycle import Lifecycle

PACE = 2.0  # seconds between refreshes that nobody asked for


async def refresh(life: Lifecycle) -> None:
    """Ask the control plane what the identity reaches now, and tell its tunnel.

    The gateway does not wait for it: it has every change within a second. It is about the names
    that services are reached under, and about what a refusal says.

    Raises:
        LatticeError: as the control plane refuses.
    """
    from lattice_sdk.wire import Reach

    life.refreshed = now()
    found = Reach.model_validate(await life.call_control_plane("GET", "services", None))
    ingress = None if found.ingress is None else tuple(found.ingress)
    await life.adopt_reach(tuple(found.services), ingress)


async def resolve(life: Lifecycle, name: str) -> str:
    """Have a host name served that a pattern of the allow list covers; its overlay address.

    Raises:
        NotPermitted: no pattern covers it.
        EgressUnavailable: no egress connector serves it.
    """
    known = life.living().hosts.get(name)
    if known is not None:
        return known
    served = await life.call_control_plane("POST", "names", {"name": name})
    await refresh(life)
    return str(served["address"])


def doubt(life: Lifecycle) -> None:
    """Something was refused: in the background, see whether policy has changed.

    From any thread. What was refused stays refused; another attempt a moment later has the names
    of new services. At most every two seconds, and never waited for.
    """
    home = life.runtime
    if home is None or now() - life.refreshed < PACE:
        return
    life.refreshed = now()

    async def look() -> None:
        with contextlib.suppress(LatticeError, ValueError):
            await refresh(life)

    with contextlib.suppress(IdentityClosed):
        home.submit(look())
