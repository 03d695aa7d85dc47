"""Once a minute: what has expired is removed, what has rested is freed, what is old is forgotten.

The gateway cuts each identity off at its own deadline; this is what makes the store agree when the
gateway's report was lost.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from lattice_server import endings, forgetting

if TYPE_CHECKING:
    from lattice_server.control import ControlPlane

log = logging.getLogger("lattice.reconciler")

BATCH = 1000


async def run(control: ControlPlane) -> None:
    """Reconcile at the interval of the settings, until cancelled."""
    interval = control.settings.reconcile_interval.total_seconds()
    while interval > 0:
        await asyncio.sleep(interval)
        try:
            await reconcile(control)
        except Exception:
            log.exception("the reconciler failed and tries again in %s s", interval)


async def reconcile(control: ControlPlane, *, forget: bool = True) -> int:
    """One pass. Each step is a short transaction, so that enrollments go on in between.

    Args:
        control: the control plane.
        forget: whether to forget as well, which a start does not wait for.

    Returns:
        How many peers had expired.
    """
    with control.metrics.reconciler_seconds.time():
        expired = 0
        while count := await endings.expire_due(control, limit=BATCH):
            expired += count
        async with control.database.write() as tx:
            await control.release_rested(tx)
        if forget:
            await forgetting.forget(control)
    return expired
