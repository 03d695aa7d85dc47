"""The init container: enrolls the pod and leaves the identity to the sidecar."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from lattice_k8s_job.ending import STATUS, Ending
from lattice_k8s_job.settings import PodSettings
from lattice_sdk import LatticeAgent
from lattice_sdk.durations import format_duration

log = logging.getLogger("lattice.k8s")

# A pod may be deleted between its two containers, and then nobody gives the identity back.
HANDOVER = timedelta(minutes=2)


async def init(settings: PodSettings, ending: Ending) -> int:
    """Enroll; the exit status.

    The identity lives for a short time only until the sidecar has it.

    Raises:
        LatticeError: as the control plane refuses; nothing is left behind.
    """
    agent = LatticeAgent(backend="none", **settings.agent())
    if await ending.cut(agent.aopen()) is None:
        await agent.aclose()
        return STATUS
    try:
        if settings.ttl > HANDOVER:
            await agent.arenew(format_duration(HANDOVER))
        log.info("%s is enrolled as %s", settings.agent_name, agent.peer_id)
        await asyncio.to_thread(agent.detach)
    except BaseException:
        await agent.aclose()
        raise
    return 0
