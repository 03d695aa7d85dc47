"""The identity of a program that runs in an agent's sandbox: it is there, and not enrolled.

Whoever started the program keeps the identity, renews it and gives it back; inside there is no
credential of it. The network is the tunnel, so connections are the kernel's own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lattice_sdk.backends.base import Isolation, Tunnel
from lattice_sdk.clock import now
from lattice_sdk.errors import IdentityClosed, IdentityExpired, NotPermitted, TunnelFailed
from lattice_sdk.sandbox.facts import identity_of
from lattice_sdk.sandbox.spec import HERE, INSIDE
from lattice_sdk.schedule import State

if TYPE_CHECKING:
    from lattice_sdk.identity import Identity
    from lattice_sdk.lifecycle import Lifecycle

log = logging.getLogger("lattice")
T = TypeVar("T")

BACKEND = "ambient"


def find() -> Any:
    """The life of the sandbox's identity, if this process is in one; else ``None``.

    It is where there is a :class:`lattice_sdk.lifecycle.Lifecycle` otherwise.
    """
    path = os.environ.get(INSIDE)
    return Ambient(Path(path)) if path else None


class _Network(Tunnel):
    """What a program in a sandbox has of its tunnel: the network that it is in."""

    isolation: Isolation = "namespace"
    phases: dict[str, float] = {}  # noqa: RUF012 - empty, and never written
    has_sockets = True

    def new_socket(self) -> socket.socket:
        """A plain one."""
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def launcher_spec(self) -> str:
        """Programs need nothing but to be started."""
        return HERE

    async def close(self) -> None:
        return


class _Terms:
    """What is known of the terms: the name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Ambient:
    """An identity's life, as a program inside has it.

    Args:
        path: of the file with the facts, which is kept current.

    Attributes:
        backend: ``ambient``.
        state: as a lifecycle's, of this object: the identity itself goes on.
    """

    backend = BACKEND
    backend_reason = "this is a sandbox"
    runtime = None

    def __init__(self, path: Path) -> None:
        self._path, self.pid = path, os.getpid()
        self._read: tuple[tuple[int, int], Identity, float] | None = None
        self._state = State.NEW
        self._network = _Network()
        self.refreshed = 0.0
        self.handed: Any = None

    @property
    def terms(self) -> _Terms:
        """With the name of the identity."""
        return _Terms(self.identity.agent_name if self.identity is not None else BACKEND)

    @property
    def state(self) -> State:
        """``expired`` from the moment on when it is."""
        if self._state is State.ACTIVE and not self.remaining():
            return State.EXPIRED
        return self._state

    @property
    def identity(self) -> Identity | None:
        """As it is now: renewals change it."""
        if self._state is not State.NEW:
            with contextlib.suppress(TunnelFailed):
                self._refresh()
        return self._read[1] if self._read is not None else None

    @property
    def tunnel(self) -> Tunnel | None:
        """The network, while it is open."""
        return self._network if self.state is State.ACTIVE else None

    @property
    def isolation(self) -> Isolation:
        """What bounds the network of programs that it starts: what bounds its own."""
        return "namespace" if self.state is State.ACTIVE else "none"

    def start(self) -> concurrent.futures.Future[None]:
        """Take part.

        Raises:
            IdentityClosed: it did before.
        """
        if self._state is not State.NEW:
            raise IdentityClosed(
                "an agent is opened once, and this one was", hint="Make a new LatticeAgent"
            )
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        try:
            self._refresh()
            self._check_network()
        except Exception as error:
            done.set_exception(error)
        else:
            self._state = State.ACTIVE
            log.info("this program has the identity %s of its sandbox", self.living().peer_id)
            done.set_result(None)
        return done

    def stop(self) -> None:
        """Take part no longer. The identity goes on."""
        self._state = State.CLOSED

    async def close(self) -> None:
        """:meth:`stop`."""
        self.stop()

    async def renew(self, ttl: str | None = None) -> None:
        """Never done from inside; see :meth:`submit`."""

    async def detach(self) -> None:
        """:meth:`stop`."""
        self.stop()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Refuse what would need a credential.

        Raises:
            NotPermitted: always, of a living identity.
        """
        work.close()
        raise NotPermitted(
            "a program in a sandbox has its agent's identity and none of its credentials",
            code="inside_sandbox",
            peer_id=self.living().peer_id,
            hint="Renew, delegate and forward in the program that started this one; a server "
            "listens at the overlay address here",
        )

    def remaining(self) -> float:
        """Seconds of life left."""
        if self._state is not State.NEW:
            with contextlib.suppress(TunnelFailed):
                self._refresh()
        return max(0.0, self._read[2] - now()) if self._read is not None else 0.0

    def living(self) -> Identity:
        """The identity, if it is alive.

        Raises:
            IdentityClosed: it is not open.
            IdentityExpired: its life is over.
        """
        if self._state is not State.ACTIVE or self._read is None:
            word = "not open yet" if self._state is State.NEW else "closed"
            raise IdentityClosed(f"the agent of this sandbox is {word}")
        left, identity = self.remaining(), self._read[1]
        if not left:
            raise IdentityExpired(
                f"the identity {identity.peer_id} of this sandbox has ended: its time is over",
                peer_id=identity.peer_id,
                hint="Start the program anew, as it was started",
            )
        return identity

    def living_tunnel(self) -> Tunnel:
        """The network of a living identity."""
        self.living()
        return self._network

    def _refresh(self) -> None:
        """Read the facts again if they have changed.

        Raises:
            TunnelFailed: they cannot be read.
        """
        try:
            status = os.stat(self._path)
            version = (status.st_mtime_ns, status.st_ino)
            if self._read is None or self._read[0] != version:
                self._read = (version, *identity_of(json.loads(self._path.read_bytes())))
        except (OSError, ValueError) as error:
            raise TunnelFailed(
                f"{INSIDE} names {self._path}, whose identity cannot be read: {error}",
                code="no_sandbox",
                hint=f"Unset {INSIDE} where this is no sandbox",
            ) from None

    def _check_network(self) -> None:
        """This must be the network of that identity, and not one that a variable was left in.

        Raises:
            TunnelFailed: the identity's address is not here.
        """
        assert self._read is not None  # noqa: S101 - read by start()
        identity = self._read[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((identity.overlay_ip, 0))
            except OSError:
                raise TunnelFailed(
                    f"the address {identity.overlay_ip} of {identity.peer_id} is not here: its "
                    "tunnel is down, or this is not its sandbox",
                    code="no_sandbox",
                    peer_id=identity.peer_id,
                    hint=f"Unset {INSIDE} where this is no sandbox",
                ) from None


def listen(life: Lifecycle, port: int) -> socket.socket:
    """A listening socket at the overlay address, of a program inside.

    Raises:
        NotPermitted: the preset accepts no connections.
        ConfigurationError: the port has a listener already.
    """
    from lattice_sdk.errors import ConfigurationError
    from lattice_sdk.ingress import check_ingress

    identity = life.living()
    check_ingress(life)
    try:
        return socket.create_server((identity.overlay_ip, port))
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"nothing can listen on port {port}: {error}") from None
