"""The init container: enrolls the pod and leaves the identity to the sidecar."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from lattice_k8s_job.ending import STATUS, Ending
from lattice_k8s_job.layout import Mode, Sidecar
from lattice_k8s_job.lock import lock
from lattice_k8s_job.settings import PodSettings
from lattice_sdk import LatticeAgent
from lattice_sdk.durations import format_duration

log = logging.getLogger("lattice.k8s")

# A pod may be deleted between its two containers, and then nobody gives the identity back.
HANDOVER = timedelta(minutes=2)


def _others_come_between(settings: PodSettings) -> bool:
    """Whether other init containers, which take their time, run before the sidecar.

    The lock has to come first; an ordinary sidecar comes after all of them.
    """
    return settings.mode is Mode.INTERFACE and settings.sidecar is Sidecar.CONTAINER


async def init(settings: PodSettings, ending: Ending) -> int:
    """Enroll; the exit status.

    The identity lives for a short time only until the sidecar has it.

    Raises:
        LatticeError: as the control plane refuses; nothing is left behind.
    """
    if settings.mode is Mode.INTERFACE:
        await lock(settings)
    agent = LatticeAgent(backend="none", **settings.agent())
    if await ending.cut(agent.aopen()) is None:
        await agent.aclose()
        return STATUS
    try:
        if settings.ttl > HANDOVER and not _others_come_between(settings):
            await agent.arenew(format_duration(HANDOVER))
        log.info("%s is enrolled as %s", settings.agent_name, agent.peer_id)
        await asyncio.to_thread(agent.detach)
    except BaseException:
        await agent.aclose()
        raise
    return 0
