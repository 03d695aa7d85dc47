"""``LatticeAgent``: the public face of one identity, for blocking and for async programs alike."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import socket
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

from lattice_sdk import ambient
from lattice_sdk.errors import ConfigurationError, IdentityClosed
from lattice_sdk.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import datetime, timedelta

    import httpx
    from pydantic import SecretStr

    from lattice_sdk.backends import Wanted
    from lattice_sdk.companion import Companion
    from lattice_sdk.delegation import Delegation, DelegationTerms
    from lattice_sdk.enrollment import Terms
    from lattice_sdk.identity import Identity
    from lattice_sdk.ingress import Listener
    from lattice_sdk.lifecycle import Lifecycle
    from lattice_sdk.schedule import State
    from lattice_sdk.wire import AllowRule, Service

log = logging.getLogger("lattice")
T = TypeVar("T")

DEFAULT_NAME = "agent"


class Face:
    """What agent and service connector have in common: opening, closing, the identity.

    Each method that takes time has two forms: ``open``, ``renew`` and ``close`` block, ``aopen``,
    ``arenew`` and ``aclose`` are awaited. Both wait for the one lifecycle in the background thread.
    """

    _life: Lifecycle

    def __init__(
        self,
        terms: Terms,
        companion: Companion | None = None,
    ) -> None:
        from lattice_sdk.lifecycle import Lifecycle

        self._take(Lifecycle(terms, companion))

    def _take(self, life: Lifecycle) -> None:
        self._life = life
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def __repr__(self) -> str:
        life = self._life
        peer = f", peer_id={life.identity.peer_id!r}" if life.identity else ""
        return f"{type(self).__name__}({life.terms.name!r}, state={life.state.value!r}{peer})"

    def open(self) -> Self:
        """Enroll and bring the tunnel up. ``with`` does this.

        Raises:
            LatticeError: it did not work; nothing is left behind, and the error says what to do.
        """
        opening = self._start()
        try:
            opening.result()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Tunnel down, identity deleted. ``with`` does this. Again without effect."""
        closing = self._stop()
        if closing is not None:
            closing.result()
        self._settle(wait=True)

    def detach(self) -> None:
        """Take the tunnel down and leave the identity alive in its state directory.

        The next agent that is opened with this directory and the same terms takes it up, also in
        another process, and then needs no token.

        Raises:
            ConfigurationError: it has no state directory.
            IdentityClosed: it is closed already.
        """
        self._life.living()
        if self._life.runtime is not None:
            self._life.runtime.submit(self._life.detach()).result()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._settle(wait=True)

    async def aopen(self) -> Self:
        """:meth:`open`, awaited. ``async with`` does this."""
        opening = self._start()
        try:
            await _wait(opening)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def aclose(self) -> None:
        """:meth:`close`, awaited. A cancellation meanwhile does not cut it short."""
        closing = self._stop()
        if closing is not None:
            await _wait_to_the_end(closing)
        ended = self._settle(wait=False)
        if ended is not None:
            await _wait_to_the_end(ended)

    def renew(self, ttl: str | None = None) -> None:
        """Have the deadline moved now; it is done in time without being asked.

        Args:
            ttl: life from now, ``"30m"``; what it was enrolled with when left out.

        Raises:
            LatticeError: as the control plane refuses.
        """
        self._run(ttl).result()

    async def arenew(self, ttl: str | None = None) -> None:
        """:meth:`renew`, awaited."""
        await _wait(self._run(ttl))

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self.aopen()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def state(self) -> State:
        """Where it is in its life.

        ``new``, ``enrolling``, ``active``, ``renewing``, ``expired``, ``closing`` or ``closed``.
        """
        return self._life.state

    @property
    def peer_id(self) -> str:
        """Its id at the control plane. Kept after the end."""
        return self._identity().peer_id

    @property
    def overlay_ip(self) -> str:
        """Its address in the overlay, without prefix: ``10.96.2.5``."""
        return self._identity().overlay_ip

    @property
    def expires_at(self) -> datetime:
        """The server's date of its end, which renewals move. In UTC."""
        return self._identity().expires_at

    @property
    def remaining(self) -> float:
        """Seconds of life left, on a clock that nobody sets."""
        return self._life.remaining()

    @property
    def wireguard_config(self) -> SecretStr | None:
        """The config for ``wg-quick``; ``None`` where the control plane hands out none.

        Complete with private key, and therefore a secret: ``.get_secret_value()``.
        """
        return self._identity().wireguard_config

    @property
    def backend(self) -> str:
        """Name of the tunnel backend that serves."""
        return self._life.backend

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine of this process; ``None`` when none runs."""
        home = self._life.runtime
        return home.engine.pid if home is not None else None

    def _identity(self) -> Identity:
        identity = self._life.identity
        if identity is None:
            self._life.living()  # raises what is the matter
            raise IdentityClosed(f"the agent {self._life.terms.name} has no identity")
        return identity

    def _start(self) -> concurrent.futures.Future[None]:
        opening = self._life.start()
        # The lifecycle outlives this object; forgotten without being closed, it is closed.
        self._finalizer = weakref.finalize(self, _forgotten, self._life)
        self._finalizer.atexit = False  # the runtime sees to that
        return opening

    def _stop(self) -> concurrent.futures.Future[None] | None:
        if self._finalizer is not None:
            self._finalizer.detach()
        return self._life.stop()

    def _settle(self, *, wait: bool) -> concurrent.futures.Future[None] | None:
        """After the last identity of the process: its thread and engine have ended."""
        home = self._life.runtime
        if home is None or home.pid != os.getpid() or not home.idle():
            return None
        if wait:
            home.ended.result()
        return home.ended

    def _run(self, ttl: str | None) -> concurrent.futures.Future[None]:
        return self._submit(self._life.renew(ttl))

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Have something done in the background loop, for a living identity."""
        return self._life.submit(work)


class LatticeAgent(Programs, Face):
    """An AI agent with a WireGuard identity, a network that its policy grants, and an end date.

    ::

        async with LatticeAgent(server="https://lattice.company.com", token="lt-workspace-token",
                                agent_name="code-executor", policy_preset="sandboxed") as agent:
            async with agent.async_http_client() as http:
                await http.get("http://github-tools.lattice/")

    ``with`` does the same in a blocking program. In a program that an agent runs in its sandbox,
    this is that agent's identity, whatever is asked for here: it has no other network.

    What is left out comes from ``LATTICE_SERVER``,
    ``LATTICE_TOKEN`` (or ``LATTICE_TOKEN_FILE``), ``LATTICE_WORKSPACE``, …, then from the config
    file (:mod:`lattice_sdk.config`).

    Args:
        server: URL of the control plane.
        token: workspace token.
        agent_name: what to call it; two agents may share a name and are two identities.
        policy_preset: ``sandboxed``, ``coordinator``, ``isolated`` or one of the workspace's own;
            when left out, the only one that the token names, else ``sandboxed``.
        agent_type: kind of agent; its name when left out.
        workspace_id: the token's workspace when left out.
        ttl: life from one renewal to the next, ``"1h"`` or a timedelta. The server may grant less.
        allow: destinations of the ``isolated`` preset, ``{"to": …, "port": …}`` each.
        forwards: by port at its overlay address, ``HOST:PORT`` that connections are forwarded to,
            for a preset that accepts ingress: ``{9000: "127.0.0.1:9000"}``.
        backend: tunnel backend by name; the first that can serve when left out.
        isolation: ``"required"``: programs have a network namespace of their own, or opening fails;
            ``"preferred"``, when left out: where the machine can, and a warning where not;
            ``"proxy"``: they are told of a proxy.
        state_dir: where the identity survives a restart of the process. It is then not deleted
            when the process is killed, only when the agent is closed or its time is over. Taking
            it up again needs no token.
        verify: file of certificate authorities for the control plane.
        rotate_keys: each renewal brings a new WireGuard key, and the former one is void once the
            new one is in use; connections go on. With the tunnel backends of this package.
        timeout: seconds until opening is given up, 30 when left out.

    Raises:
        ConfigurationError: a setting is missing or wrong.
    """

    def __init__(
        self,
        *,
        server: str | None = None,
        token: str | SecretStr | None = None,
        agent_name: str | None = None,
        policy_preset: str | None = None,
        agent_type: str | None = None,
        workspace_id: str | None = None,
        ttl: str | timedelta | None = None,
        allow: Iterable[AllowRule | Mapping[str, Any]] = (),
        forwards: Mapping[int, str] | None = None,
        backend: str | None = None,
        isolation: Wanted | None = None,
        state_dir: Path | str | None = None,
        verify: Path | str | bool | None = None,
        rotate_keys: bool | None = None,
        timeout: float | None = None,
    ) -> None:
        from lattice_sdk.ingress import Forwards, forward
        from lattice_sdk.terms import make_terms

        self._forwards = Forwards(forward(*one) for one in (forwards or {}).items())
        if (inside := ambient.find()) is not None:
            self._take(inside)
            return
        super().__init__(
            make_terms(
                server=server,
                token=token,
                workspace=workspace_id,
                backend=backend,
                isolation=isolation,
                state_dir=state_dir,
                verify=verify,
                rotate_keys=rotate_keys,
                timeout=timeout,
                request={
                    "agent_name": agent_name or DEFAULT_NAME,
                    "agent_type": agent_type,
                    "ttl": ttl,
                    "policy_preset": policy_preset,
                    "allow": list(allow),
                },
            ),
            self._forwards,
        )

    @property
    def services(self) -> tuple[Service, ...]:
        """The tool services that it may reach, with the names they are reached under."""
        return tuple(self._identity().services)

    async def delegate(self, agent_name: str, **terms: Unpack[DelegationTerms]) -> Delegation:
        """A token with which one sub-agent enrolls, and never more than this agent has.

        ::

            helper = await agent.delegate("searcher", policy_preset="sandboxed", ttl="10m")
            async with LatticeAgent(**helper.settings()) as searcher:
                ...

        The sub-agent ends with this agent, however that ends.

        Args:
            agent_name: what the sub-agent is called.
            terms: what it is to have; see :class:`lattice_sdk.delegation.DelegationTerms`.

        Raises:
            NotPermitted: it would be more than this agent has, or nothing may be delegated.
            LatticeError: as the control plane refuses.
        """
        return await _wait(self._delegate(agent_name, terms))

    def delegate_sync(self, agent_name: str, **terms: Unpack[DelegationTerms]) -> Delegation:
        """:meth:`delegate` for blocking programs."""
        return self._delegate(agent_name, terms).result()

    def _delegate(
        self, agent_name: str, terms: DelegationTerms
    ) -> concurrent.futures.Future[Delegation]:
        from lattice_sdk import delegation

        request = delegation.make_request(agent_name, terms)
        return self._submit(delegation.delegate(self._life, request))

    def refresh(self) -> None:
        """Learn what the agent reaches now: :attr:`services` and the names of its tunnel.

        Policy reaches the gateway at once, and a renewal tells of it. A refusal has it looked up
        in the background, so that the names of a new service work a moment later.

        Raises:
            LatticeError: as the control plane refuses.
        """
        from lattice_sdk.reach import refresh

        self._submit(refresh(self._life)).result()

    async def arefresh(self) -> None:
        """:meth:`refresh`, awaited."""
        from lattice_sdk.reach import refresh

        await _wait(self._submit(refresh(self._life)))

    def resolve(self, name: str) -> str:
        """The overlay address of a host name, from :attr:`services` or a pattern of ``allow``.

        The tunnel's proxy does this by itself. It is for programs that have no proxy, in a network
        namespace: a name of a pattern is in their ``/etc/hosts`` once it was resolved.

        Args:
            name: ``files.example.org``, for one.

        Raises:
            NotPermitted: neither a service nor a pattern has it.
            EgressUnavailable: no egress connector serves it.
        """
        from lattice_sdk.reach import resolve

        return self._submit(resolve(self._life, name)).result()

    async def aresolve(self, name: str) -> str:
        """:meth:`resolve`, awaited."""
        from lattice_sdk.reach import resolve

        return await _wait(self._submit(resolve(self._life, name)))

    def http_client(self, **options: Any) -> httpx.Client:
        """A client whose every request goes through the tunnel; to be closed like any.

        Args:
            options: of :class:`httpx.Client`, but those that would lead past the tunnel.

        Raises:
            ConfigurationError: an option would lead past the tunnel.
            IdentityClosed: the agent is not open.
            IdentityExpired: its life is over.

        A request raises :class:`Refused`, :class:`DestinationUnreachable` or
        :class:`IdentityExpired`, each of which is an :class:`httpx.ConnectError` too.
        """
        import httpx

        from lattice_sdk import transports, tunnelled

        if not tunnelled.is_plain(self._life):
            tunnelled.proxy_of(self._life)
        inner, outer = transports.client_options(options)
        transport = transports.TunnelTransport(self._alive, **inner)
        return httpx.Client(transport=transport, trust_env=False, **outer)

    def async_http_client(self, **options: Any) -> httpx.AsyncClient:
        """:meth:`http_client` for async programs."""
        import httpx

        from lattice_sdk import transports, tunnelled

        if not tunnelled.is_plain(self._life):
            tunnelled.proxy_of(self._life)
        inner, outer = transports.client_options(options)
        transport = transports.AsyncTunnelTransport(self._alive, **inner)
        return httpx.AsyncClient(transport=transport, trust_env=False, **outer)

    def connect(self, host: str, port: int, timeout: float | None = 30.0) -> socket.socket:
        """A connected TCP socket to a destination, through the tunnel.

        Args:
            host: overlay address, or a host name of :attr:`services`.
            port: TCP port.
            timeout: seconds until the connection is given up. The socket itself has none.

        Raises:
            Refused: the policy does not grant it; the message says what would.
            DestinationUnreachable: it is granted and does not answer.
            IdentityClosed: the agent is not open.
            IdentityExpired: its life is over.
        """
        from lattice_sdk import tunnelled

        return tunnelled.connect(self._life, host, port, timeout)

    def proxy_env(self) -> dict[str, str]:
        """Environment for a child program, so that it takes the tunnel; holds a secret.

        ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, in both cases of letters.
        A program may ignore them; the ``netns`` backend is what it cannot ignore.

        Raises:
            IdentityClosed: the agent is not open.
            IdentityExpired: its life is over.
        """
        from lattice_sdk import tunnelled

        if tunnelled.is_plain(self._life):
            return {}
        return tunnelled.proxy_of(self._life).environment()

    def forward(self, port: int, target: str, protocol: Literal["tcp", "udp"] = "tcp") -> None:
        """Forward a port of the overlay address to where something listens, until the end.

        Agents of the workspace that may reach this one connect to ``overlay_ip:port``.

        Args:
            port: at the overlay address.
            target: ``HOST:PORT`` in the host's network, ``127.0.0.1:9000``.
            protocol: ``tcp`` or ``udp``.

        Raises:
            NotPermitted: the preset accepts no connections.
            ConfigurationError: the port has a listener, or these are no port and target.
            IdentityClosed: the agent is not open.
            IdentityExpired: its life is over.
        """
        self._submit(self._begin_forward(port, target, protocol)).result()

    async def aforward(
        self, port: int, target: str, protocol: Literal["tcp", "udp"] = "tcp"
    ) -> None:
        """:meth:`forward`, awaited."""
        await _wait(self._submit(self._begin_forward(port, target, protocol)))

    def listen(self, port: int) -> Listener | socket.socket:
        """A listening TCP socket at the overlay address.

        Agents of the workspace that may reach this one connect to ``overlay_ip:port``, and
        ``accept`` tells their overlay address. It ends with the agent.

        Args:
            port: at the overlay address.

        Raises:
            NotPermitted: the preset accepts no connections.
            ConfigurationError: the port has a listener already.
            IdentityClosed: the agent is not open.
            IdentityExpired: its life is over.
        """
        if self.backend == ambient.BACKEND:
            return ambient.listen(self._life, port)
        return self._submit(self._begin_listen(port)).result()

    async def alisten(self, port: int) -> Listener | socket.socket:
        """:meth:`listen`, awaited."""
        if self.backend == ambient.BACKEND:
            return ambient.listen(self._life, port)
        return await _wait(self._submit(self._begin_listen(port)))

    async def _begin_forward(self, port: int, target: str, protocol: Any) -> None:
        from lattice_sdk.ingress import forward

        await self._forwards.add(self._life, forward(port, target, protocol))

    async def _begin_listen(self, port: int) -> Listener:
        from lattice_sdk.ingress import listen

        return await listen(self._life, self._forwards, port)

    def _alive(self) -> Lifecycle:
        # A bound method: a client keeps its agent, which would else be closed when forgotten.
        return self._life


def _forgotten(life: Lifecycle) -> None:
    """Garbage collection of an agent that nobody closed."""
    home = life.runtime
    if home is None or life.pid != os.getpid() or life.state.value == "closed":
        return
    log.warning("%s was not closed; use `with`, or call close()", life.terms.name)
    try:
        home.submit(life.close())
    except (IdentityClosed, ConfigurationError):
        return


async def _wait(future: concurrent.futures.Future[T]) -> T:
    """Await a future of the background loop, in asyncio or in trio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        import anyio.to_thread

        return await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True)
    return await asyncio.wrap_future(future)


async def _wait_to_the_end(future: concurrent.futures.Future[T]) -> None:
    """Await a future whatever cancellations come; one that came is raised at the end."""
    import anyio

    cancelled: BaseException | None = None
    with anyio.CancelScope(shield=True):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            await _wait(future)
            return
        while not future.done():
            try:
                await asyncio.shield(asyncio.wrap_future(future))
            except asyncio.CancelledError as error:
                if future.cancelled():
                    raise
                cancelled = error
    if cancelled is not None:
        raise cancelled
    future.result()
