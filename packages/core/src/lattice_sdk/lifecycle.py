"""The life of one identity: enroll, tunnel up, renew, tear down. Runs in the background loop.

One implementation; :class:`lattice_sdk.LatticeAgent` and the service connector are faces of it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

from lattice_sdk import plugins, runtime, schedule, wgconfig
from lattice_sdk.backends import Choice, Isolation, NameSource, Revoke, Tunnel, TunnelSpec, choose
from lattice_sdk.client import ControlPlane
from lattice_sdk.clock import now
from lattice_sdk.companion import Companion
from lattice_sdk.enrollment import ENDED, Enrollment, Terms
from lattice_sdk.errors import (
    BackendUnavailable,
    ConfigurationError,
    IdentityClosed,
    IdentityExpired,
    LatticeError,
    ServerUnreachable,
    TunnelFailed,
)
from lattice_sdk.handed import Handed
from lattice_sdk.identity import Identity
from lattice_sdk.lease import Lease
from lattice_sdk.schedule import State
from lattice_sdk.wire import EnrollResponse, Service

log = logging.getLogger("lattice")
T = TypeVar("T")

LOOK = 30.0  # seconds at most between looks at the clock: a suspended machine wakes late
DELETE_BUDGET = 6.0  # seconds for the DELETE of a teardown, attempts and pauses together
LATE_ANSWER = 6.0  # seconds that a cancelled enrollment waits for its answer, to delete it
PROOF = 5.0  # seconds for a tunnel's handshake


class Lifecycle:
    """One identity's life.

    Args:
        terms: what it is enrolled with.
        companion: what it does beside its tunnel.

    Attributes:
        state: where it is in its life.
        identity: the current one, ``None`` before the enrollment. Kept after the end.
        tunnel: the current one.
        backend: name of the tunnel backend, ``""`` before it was chosen.
        backend_reason: why that one.
        ended: why it expired.
        refreshed: when it was last asked what the identity reaches.
    """

    def __init__(
        self,
        terms: Terms,
        companion: Companion | None = None,
    ) -> None:
        self.terms = terms
        self.pid = os.getpid()
        self.state = State.NEW
        self.identity: Identity | None = None
        self.tunnel: Tunnel | None = None
        self.backend = self.backend_reason = ""
        self.ended: str | None = None
        self.handed = Handed()
        self.refreshed = 0.0
        self.runtime: runtime.Runtime | None = None
        self.companion = companion or Companion()
        self._lease = Lease()
        self._enrollment = Enrollment(terms)
        self._changing, self._nudge = asyncio.Lock(), asyncio.Event()
        self._opening: asyncio.Task[Any] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._lost = self._kept = False
        self._programs: Tunnel | None = None

    # Any thread.

    def start(self) -> concurrent.futures.Future[None]:
        """Begin to open. Once in a life.

        Raises:
            IdentityClosed: it was opened before.
        """
        if self.pid != os.getpid():
            raise runtime.forked()
        if self.state is not State.NEW or self.runtime is not None:
            raise IdentityClosed(
                "an agent is opened once, and this one was", hint="Make a new LatticeAgent"
            )
        self.runtime = runtime.join(self)
        if self.handed.engine is not None:
            self.runtime.engine.give(self.handed.engine)
        self._enrollment.first = self.handed.enrolled
        return self.runtime.submit(self.open())

    def stop(self) -> concurrent.futures.Future[None] | None:
        """Begin to close; ``None`` where there is nothing to wait for."""
        if self.runtime is None or self.pid != os.getpid():
            return None
        try:
            return self.runtime.submit(self.close())
        except IdentityClosed:
            return None

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Have something done in the background loop, while the identity lives.

        Raises:
            IdentityClosed: it is not open, or in the parent process.
            IdentityExpired: its life is over.
        """
        try:
            self.living()
            if self.runtime is None:
                raise IdentityClosed(f"the agent {self.terms.name} is closed")
        except BaseException:
            work.close()
            raise
        return self.runtime.submit(work)

    def remaining(self) -> float:
        """Seconds of life left."""
        return self._lease.remaining()

    def living(self) -> Identity:
        """The identity, if it is alive in this process.

        Raises:
            IdentityClosed: it is not open, or in the parent process.
            IdentityExpired: its life is over.
        """
        if self.pid != os.getpid():
            raise runtime.forked()
        identity = self.identity
        if identity is None or self.state in (State.NEW, State.ENROLLING):
            if self.state in (State.NEW, State.ENROLLING):
                raise IdentityClosed(
                    f"the agent {self.terms.name} is not open yet",
                    code="not_open",
                    hint="Use it inside `with` or `async with`",
                )
            raise IdentityClosed(f"the agent {self.terms.name} is closed")
        if self.state in (State.CLOSING, State.CLOSED):
            raise IdentityClosed(
                f"the agent {self.terms.name} is closed",
                peer_id=identity.peer_id,
                hint="Make a new LatticeAgent",
            )
        if self.state is State.EXPIRED or not self.remaining():
            raise IdentityExpired(
                f"the identity {identity.peer_id} of {self.terms.name} has ended: "
                f"{self.ended or 'its time is over'}",
                peer_id=identity.peer_id,
                hint="Make a new LatticeAgent to enroll anew",
            )
        return identity

    def living_tunnel(self) -> Tunnel:
        """The tunnel of a living identity.

        Raises:
            IdentityClosed: it is not open, or in the parent process.
            IdentityExpired: its life is over.
            TunnelFailed: it is being rebuilt.
        """
        identity, tunnel = self.living(), self.tunnel
        if tunnel is None:
            raise TunnelFailed(
                "the tunnel is being rebuilt",
                code="tunnel_gone",
                peer_id=identity.peer_id,
                hint="Try again",
            )
        return tunnel

    @property
    def isolation(self) -> Isolation:
        """What bounds the network of programs; ``none`` before the tunnel is up and after."""
        tunnel = self._programs if self.state is State.EXPIRED else self.tunnel
        return tunnel.isolation if tunnel is not None else "none"

    @property
    def client(self) -> ControlPlane:
        """The client of its control plane, while it is open; belongs to the background loop."""
        client = self._enrollment.client
        if client is None:
            raise IdentityClosed(f"the agent {self.terms.name} is closed")
        return client

    # In the loop.

    async def open(self) -> None:
        """Enroll and bring the tunnel up. What fails leaves nothing behind that was not there.

        Raises:
            LatticeError: as control plane, backend or tunnel say.
        """
        self._opening = asyncio.current_task()
        try:
            self._enter(State.ENROLLING)
            async with asyncio.timeout(self.terms.timeout):
                await self._open(await self._choose())
        except BaseException as error:
            # An identity that was alive before outlives a tunnel that does not come up just now.
            self._kept = self._enrollment.resumed and isinstance(error, Exception)
            await runtime.finish(self._shut())
            if isinstance(error, TimeoutError):
                raise ServerUnreachable(
                    f"the agent {self.terms.name} was not up within {self.terms.timeout:g} s",
                    code="enrollment_timeout",
                    hint="Look at the log for what was slow, or give it a longer timeout",
                ) from None
            raise

    async def close(self) -> None:
        """Stop renewing, tunnel down, delete, closed. Once; again it waits for the same end."""
        if self.state is State.CLOSED:
            return
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait([self._opening])
            return
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._shut())
        await asyncio.shield(self._closing)

    async def detach(self) -> None:
        """:meth:`close`, but the identity lives on in its state directory.

        Raises:
            ConfigurationError: it has none.
        """
        if self.terms.state_dir is None:
            raise ConfigurationError(
                f"the agent {self.terms.name} has no state directory to leave its identity in",
                hint="Give it state_dir=…, or close it",
            )
        self._kept = True
        await self.close()

    async def renew(self, ttl: str | None = None) -> None:
        """Have the deadline moved now.

        Raises:
            LatticeError: as the control plane refuses.
        """
        self.living()
        async with self._changing:
            self.living()
            await self._renew(ttl)
        self._nudge.set()

    def hasten(self) -> None:
        """Have it renewed as soon as may be, for somebody who doubts that it lives."""
        self._lease.due = now()
        self._nudge.set()

    async def call_control_plane(self, method: str, what: str, body: Any) -> Any:
        """A call about the identity, with its own token: ``/api/v1/peers/{id}/WHAT``.

        Raises:
            LatticeError: as the control plane refuses.
        """
        identity, client = self.identity, self._enrollment.client
        if identity is None or client is None:
            raise IdentityClosed(f"the agent {self.terms.name} has no identity")
        path = f"/api/v1/peers/{quote(identity.peer_id, safe='')}/{what}"
        return await client.request(method, path, body, token=identity.enrollment_token)

    async def adopt_reach(
        self, services: tuple[Service, ...], ingress: tuple[str, ...] | None
    ) -> None:
        """Take over what the identity reaches by now, and tell the tunnel of it."""
        async with self._changing:
            identity = self.living()
            if (services, ingress) == (identity.services, identity.ingress):
                return
            self.identity = replace(identity, services=services, ingress=ingress)
            if self.tunnel is not None and not self._lost:
                await self.tunnel.update(self._spec())

    async def _choose(self) -> Choice:
        assert self.runtime is not None  # noqa: S101 - start() came first

        if self.handed.backend is not None:
            return Choice((self.handed.backend,))

        def chosen() -> Choice:
            offers = plugins.manager().hook.lattice_tunnel_backends()
            offered = [one for offer in offers for one in offer]
            return choose(offered, self.terms.backend, self.terms.isolation)

        # Plugins are found on the disk, and backends try what this machine can do.
        return await self.runtime.call(chosen)

    async def _prepare(self, choice: Choice) -> Choice:
        """Have the first backend get ready; without those that turn out not to be able to."""
        while True:
            try:
                await choice.backends[0].prepare()
            except BackendUnavailable as error:
                choice = choice.without_first(error)
            else:
                return choice

    async def _raise_first_tunnel(self, choice: Choice) -> None:
        while True:
            self._backend = choice.backends[0]
            self.backend, self.backend_reason = self._backend.name, choice.why()
            try:
                await self._raise_tunnel()
            except BackendUnavailable as error:
                choice = await self._prepare(choice.without_first(error))
            else:
                break
        if choice.reasons and self.tunnel is not None and self.tunnel.isolation != "namespace":
            log.warning(
                "programs of %s are not isolated, they could use this machine's network: %s. "
                "isolation='required' refuses that, isolation='proxy' takes it as it is",
                self.terms.name,
                "; ".join(choice.reasons),
            )

    async def _open(self, choice: Choice) -> None:
        started = now()
        preparing = asyncio.ensure_future(self._prepare(choice))
        try:
            await self._adopt_first()
            enrolled = now()
            await self._notify("lattice_enrolled")
            choice = await preparing
            prepared = now()
        finally:
            preparing.cancel()
            with contextlib.suppress(BaseException):
                await preparing
        await self._raise_first_tunnel(choice)
        self._enter(State.ACTIVE)
        self._keeper = asyncio.create_task(self._keep())
        assert self.identity is not None  # noqa: S101 - adopted above
        assert self.tunnel is not None  # noqa: S101 - raised above
        phases = {"enroll": enrolled - started, "prepare": prepared - enrolled}
        phases |= self.tunnel.phases
        log.info(
            "%s is active as %s, address %s, backend %s (%s), %.0f s to live; %s; %.1f ms in all",
            self.terms.name,
            self.identity.peer_id,
            self.identity.overlay_ip or "none",
            self.backend,
            self.backend_reason,
            self.remaining(),
            ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in phases.items()),
            (now() - started) * 1000,
        )

    async def _adopt_first(self) -> None:
        """Enroll. Cancelled meanwhile, wait for the answer: its identity must be deleted again."""
        asking = asyncio.ensure_future(self._enrollment.begin())
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                self._adopt(await asyncio.wait_for(asking, LATE_ANSWER))
            raise
        self._adopt(answer)

    def _adopt(self, answer: EnrollResponse) -> None:
        terms, client = self.terms, self._enrollment.client
        assert client is not None  # noqa: S101 - the answer came by it
        config = answer.wireguard_config
        self.identity = Identity(
            peer_id=answer.peer_id,
            agent_name=terms.name,
            server=client.server,
            overlay_ip=answer.overlay_ip.partition("/")[0],
            expires_at=answer.expires_at,
            policy_preset=answer.policy_preset or terms.request.policy_preset or "sandboxed",
            enrollment_token=answer.enrollment_token,
            private_key=self._enrollment.key.private,
            wireguard_config=config if config.get_secret_value().strip() else None,
            workspace_id=answer.workspace_id or terms.request.workspace_id,
            services=tuple(answer.services),
            allow=tuple(terms.request.allow),
            gateway_ip=answer.gateway_ip,
            ingress=None if answer.ingress is None else tuple(answer.ingress),
        )
        self._lease.granted(answer, client.clock)

    def _spec(self) -> TunnelSpec:
        identity, client = self.identity, self._enrollment.client
        assert identity is not None  # noqa: S101 - adopted before
        assert client is not None  # noqa: S101 - likewise
        config = identity.wireguard_config
        revoke = None
        # With a state directory the identity is meant to outlive a crash.
        if self.terms.state_dir is None:
            url, token = client.revoke_call(
                identity.peer_id, identity.enrollment_token, identity.workspace_id
            )
            revoke = Revoke(
                url, token, str(self.terms.ca_file.absolute() if self.terms.ca_file else "")
            )
        return TunnelSpec(
            identity=identity,
            config=wgconfig.parse(config.get_secret_value()) if config else None,
            expires_in=self.remaining,
            revoke=revoke,
            names=self._name_source(identity),
            timeout=PROOF,
            router=self.companion.router,
            secret_files=self.terms.secret_files,
        )

    def _name_source(self, identity: Identity) -> NameSource | None:
        patterns = tuple(rule.to for rule in identity.allow if rule.to.startswith("*."))
        if not patterns:
            return None
        url = f"{identity.server}/api/v1/peers/{quote(identity.peer_id, safe='')}/names"
        ca_file = str(self.terms.ca_file.absolute() if self.terms.ca_file else "")
        return NameSource(patterns, url, identity.enrollment_token, ca_file)

    async def _raise_tunnel(self) -> None:
        """A new tunnel for the identity; the old one, if there is one, ends behind it."""
        former = self.tunnel
        try:
            tunnel = await self._backend.open(self._spec())
        except LatticeError:
            raise
        except Exception as error:
            raise TunnelFailed(
                f"the tunnel backend {self.backend} failed: {type(error).__name__}: {error}",
                peer_id=self.identity.peer_id if self.identity else None,
            ) from error
        try:
            await self.companion.tunnel_up(self, tunnel)
        except BaseException:
            await runtime.finish(tunnel.close())
            raise
        tunnel.on_lost(self._tunnel_lost)
        tunnel.on_silent(self._tunnel_silent)
        self.tunnel, self._lost = tunnel, False
        if former is not None:
            await former.end_programs()  # their network has ended
            await former.give_way(tunnel)
        await self._notify("lattice_tunnel_up", backend=self.backend, phases=dict(tunnel.phases))

    def _tunnel_lost(self) -> None:
        self._lost = True
        self._nudge.set()

    def _tunnel_silent(self, silent: bool) -> None:
        if not silent:
            log.warning("%s: the gateway answers again", self._peer_id)
            return
        log.warning(
            "%s: the gateway has not answered for longer than a WireGuard session lives. Its "
            "address is looked up again and the control plane asked for it; look at the gateway "
            "and the way to it if this stays so",
            self._peer_id,
        )
        if self._lease.due is not None:
            self.hasten()  # the answer tells where the gateway is now

    async def _keep(self) -> None:
        """Renew in time, mend the tunnel, and end at the deadline."""
        mend, mends = 0.0, 0
        while (left := self.remaining()) > 0:
            wakes = [self._lease.due, mend if self._lost else None]
            pause = min(left, LOOK, *(max(0.0, at - now()) for at in wakes if at is not None))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._nudge.wait()
            self._nudge.clear()
            if self._lost and now() >= mend:
                mend, mends = now() + schedule.mend_delay(mends), mends + 1
                await self._mend()
            if not self._lost:
                mends = 0
            if self._lease.is_due() and self.remaining() and await self._renew_once():
                return
        late = f": {self._lease.attempts} attempts to renew failed" if self._lease.attempts else ""
        await self._expire(f"its time is over{late}")

    async def _mend(self) -> None:
        try:
            async with self._changing, asyncio.timeout(self.remaining()):
                await self._raise_tunnel()
        except Exception as error:
            log.warning("%s: the tunnel was not rebuilt: %s", self._peer_id, _why(error))

    async def _renew_once(self) -> bool:
        """One attempt to renew; whether the identity is over."""
        try:
            async with self._changing, asyncio.timeout(self.remaining()):
                if not self._lease.is_due():
                    return False  # somebody renewed by hand meanwhile
                await self._renew()
        except ENDED as error:
            await self._notify("lattice_renew_failed", error=error, retry_in=None)
            await self._expire(f"the control plane has ended it ({error})")
            return True
        except Exception as error:
            delay = self._lease.failed(getattr(error, "retry_after", None))
            log.warning(
                "%s was not renewed, %.1f s to live: %s",
                self._peer_id,
                self.remaining(),
                _why(error),
            )
            await self._notify("lattice_renew_failed", error=error, retry_in=delay)
        return False

    async def _renew(self, ttl: str | None = None) -> None:
        former, client = self.identity, self._enrollment.client
        assert former is not None  # noqa: S101 - only an identity is renewed
        assert client is not None  # noqa: S101 - likewise
        self._enter(State.RENEWING)
        try:
            if client.second_dialect:
                await self._switch_over(former)
            else:
                rotate = self.terms.rotate_keys and self.tunnel is not None and self.tunnel.rotates
                self._adopt(await self._enrollment.renew(former, ttl, rotate=rotate))
                if self.tunnel is not None and not self._lost:
                    await self.tunnel.update(self._spec())
        finally:
            if self.state is State.RENEWING:
                self._enter(State.ACTIVE)
        log.debug("%s renewed, %.1f s to live", former.peer_id, self.remaining())
        await self._notify("lattice_renewed")

    async def _switch_over(self, former: Identity) -> None:
        """Where there is no renewal: a second identity and its tunnel, then the first ends."""
        lease, self._lease = self._lease, Lease()
        try:
            answer = await self._enrollment.enroll_successor()
        except BaseException:
            self._lease = lease
            raise
        self._adopt(answer)
        successor = self.identity
        assert successor is not None  # noqa: S101 - adopted above
        try:
            await self._raise_tunnel()
        except BaseException:
            self.identity, self._lease = former, lease
            with contextlib.suppress(LatticeError):
                await runtime.finish(self._enrollment.delete(successor, DELETE_BUDGET))
            raise
        with contextlib.suppress(LatticeError):
            await self._enrollment.delete(former, DELETE_BUDGET)

    async def _expire(self, reason: str) -> None:
        """Fail closed."""
        self.ended = reason
        self._enter(State.EXPIRED)
        log.warning("%s has ended: %s", self._peer_id, reason)
        await self._drop_tunnel()
        await self._notify("lattice_expired", reason=reason)

    async def _drop_tunnel(self) -> None:
        await self.companion.tunnel_down()
        tunnel, self.tunnel = self.tunnel, None
        if tunnel is not None:
            self._programs = tunnel
            try:
                await tunnel.close()
            except Exception:
                log.exception("%s: the tunnel was not taken down", self.terms.name)

    async def _end_programs(self) -> None:
        """Kill what was started, also that which goes on without a network since the expiry."""
        for tunnel in (self.tunnel, self._programs):
            if tunnel is not None:
                try:
                    await tunnel.end_programs()
                except Exception:
                    log.exception("%s: programs were not ended", self.terms.name)

    async def _shut(self) -> None:
        if self.state in (State.CLOSING, State.CLOSED):
            return
        expired = self.state is State.EXPIRED
        self._enter(State.CLOSING)
        try:
            if self._keeper is not None:
                self._keeper.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._keeper
            await self._end_programs()
            await self._drop_tunnel()
            if self.identity is not None and not expired and not self._kept:
                await self._delete(self.identity)
            await self._enrollment.close()
        except Exception:
            log.exception("%s: not all was taken down", self.terms.name)
        finally:
            self._enter(State.CLOSED)
            if self.identity is not None and not self._kept:
                await self._notify("lattice_closed")
            if self.runtime is not None:
                await self.runtime.leave(self)

    async def _delete(self, identity: Identity) -> None:
        try:
            await self._enrollment.delete(identity, min(DELETE_BUDGET, self.remaining()))
        except LatticeError as error:
            log.warning(
                "%s could not be deleted and ends by itself in %.0f s: %s",
                identity.peer_id,
                self.remaining(),
                error,
            )

    @property
    def _peer_id(self) -> str:
        return self.identity.peer_id if self.identity else self.terms.name

    def _enter(self, state: State) -> None:
        if not schedule.follows(self.state, state):
            raise RuntimeError(f"an identity cannot go from {self.state} to {state}")
        self.state = state

    async def _notify(self, hook: str, **arguments: Any) -> None:
        if self.runtime is not None and getattr(plugins.manager().hook, hook).get_hookimpls():
            await self.runtime.call(plugins.notify, hook, identity=self.identity, **arguments)


def _why(error: Exception) -> str:
    """What to say of an error; a deadline that is over has no words of its own."""
    return str(error) or "no answer came in time"
