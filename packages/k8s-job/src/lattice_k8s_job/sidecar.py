"""The sidecar: takes the pod's identity up, keeps it alive, gives it back when the pod ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from http import HTTPStatus

from lattice_k8s_job import answers
from lattice_k8s_job.ending import Ending
from lattice_k8s_job.layout import Sidecar
from lattice_k8s_job.network import network_of
from lattice_k8s_job.others import OtherContainers
from lattice_k8s_job.settings import PodSettings
from lattice_sdk import Identity, LatticeAgent, LatticeError, hookimpl
from lattice_sdk.client import ControlPlane
from lattice_sdk.config import load as sdk_settings
from lattice_sdk.config import needed_server
from lattice_sdk.errors import ConfigurationError, IdentityExpired, NotPermitted, ServerUnreachable
from lattice_sdk.plugins import manager
from lattice_sdk.statedir import StateDir

log = logging.getLogger("lattice.k8s")

RETRY_FIRST, RETRY_MOST = 0.25, 5.0  # seconds between attempts to take the identity up
GIVE_BACK = 4.0  # seconds for giving back an identity that was not taken up
LAST_WORDS = 10.0  # seconds of the pod's grace that are kept for giving the identity back
# A control plane that is away comes back; these do not pass by waiting.
FINAL = (ConfigurationError, IdentityExpired, NotPermitted)


class Keeper:
    """One sidecar.

    Attributes:
        agent: the identity, once it was taken up.
        ended: why the identity is over, when it is.
    """

    def __init__(self, settings: PodSettings, ending: Ending) -> None:
        self.settings, self.ending = settings, ending
        self.agent: LatticeAgent | None = None
        self.ended: str | None = None
        self.network = network_of(settings)
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._others = OtherContainers() if settings.sidecar is Sidecar.CONTAINER else None

    @hookimpl
    def lattice_tunnel_backends(self) -> list[object]:
        """The pod's own backend."""
        return [self.network.backend]

    @hookimpl
    def lattice_enrolled(self, identity: Identity) -> None:
        """Called in a thread of the SDK's."""
        self.network.tell(identity)

    @hookimpl
    def lattice_renewed(self, identity: Identity) -> None:
        """Called in a thread of the SDK's."""
        self.network.tell(identity)

    @hookimpl
    def lattice_expired(self, reason: str) -> None:
        """Called in a thread of the SDK's."""
        self.ended = reason
        self._loop.call_soon_threadsafe(self._over.set)

    async def run(self) -> None:
        """Until the pod ends."""
        health = await answers.serve(answers.everywhere(self.settings.health_port), self.health)
        manager().register(self)
        keeping = asyncio.ensure_future(self.network.keep())
        try:
            if await self._take_up():
                log.info("the identity %s is up", self.agent and self.agent.peer_id)
                await self._keep()
        finally:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping
            manager().unregister(self)
            health.close()

    async def health(self, _method: str, target: str) -> answers.Answer:
        """``/healthz``: this process works. ``/readyz``: the agent's network does."""
        path = target.partition("?")[0]
        if path == "/healthz":
            return HTTPStatus.OK, {"healthy": True}
        if path != "/readyz":
            return HTTPStatus.NOT_FOUND, {"detail": "there are /healthz and /readyz"}
        state = str(self.agent.state) if self.agent else "enrolling"
        if state in ("active", "renewing") and await self.network.reachable():
            return HTTPStatus.OK, {"ready": True, "state": state}
        detail = self.ended or "the tunnel is not up"
        return HTTPStatus.SERVICE_UNAVAILABLE, {"ready": False, "state": state, "detail": detail}

    async def _take_up(self) -> bool:
        """Take the identity up, however long the control plane is away; not once asked to end."""
        pause = RETRY_FIRST
        while not self.ending.asked:
            agent = LatticeAgent(backend=self.network.backend.name, **self.settings.agent())
            try:
                self.agent = await self.ending.cut(agent.aopen())
            except FINAL:
                raise
            except LatticeError as error:
                log.warning("the identity is not up yet: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.ending.wait(), pause)
                pause = min(2 * pause, RETRY_MOST)
                continue
            if self.agent is not None:
                return True
        await give_back(self.settings)
        return False

    async def _keep(self) -> None:
        assert self.agent is not None  # noqa: S101 - taken up before
        ends = [asyncio.ensure_future(self.ending.wait())]
        if self._others is not None and self.settings.containers:
            ends.append(asyncio.ensure_future(self._others.ended(self.settings.containers)))
        over = asyncio.ensure_future(self._epitaph())
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._others is not None and self.ending.asked:
                # Asked at the same time as the agent, which still needs its network to end well.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._others.gone(), max(0.0, self.settings.grace - LAST_WORDS)
                    )
        finally:
            for task in (over, *ends):
                task.cancel()
            await self.agent.aclose()
        log.info("the identity %s was given back", self.agent.peer_id)

    async def _epitaph(self) -> None:
        """After the identity's end, say so to whoever still asks for the network."""
        await self._over.wait()
        log.error("the identity is over (%s); delete the pod to enroll anew", self.ended)
        assert self.agent is not None  # noqa: S101 - it was its identity
        await self.network.say(
            f"the identity {self.agent.peer_id} of this pod has ended: {self.ended}",
            self.agent.peer_id,
        )


async def sidecar(settings: PodSettings, ending: Ending) -> int:
    """Keep the identity; the exit status, 0 also when the control plane did not hear of the end.

    A container that ends with anything else makes a finished Job a failed one.

    Raises:
        LatticeError: there is no identity to keep.
    """
    await Keeper(settings, ending).run()
    return 0


async def give_back(settings: PodSettings) -> None:
    """Delete the identity that lies in the state directory."""
    state = StateDir(settings.state_dir)
    try:
        saved = state.load()
        if saved is None or saved.peer_id is None or saved.enrollment_token is None:
            return
        sdk = sdk_settings()
        async with asyncio.timeout(GIVE_BACK):
            async with ControlPlane(
                needed_server(sdk), saved.enrollment_token, verify=sdk.ca_file or True
            ) as plane:
                await plane.delete_peer(saved.peer_id, saved.enrollment_token)
        state.clear()
    except (TimeoutError, ServerUnreachable, LatticeError) as error:
        log.warning("the identity was not given back and ends by itself: %s", error)
    finally:
        state.release()
