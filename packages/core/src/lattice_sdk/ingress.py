"""Ways in: forwards from the overlay address to where something listens, and listeners.

For agents whose preset accepts ingress, and for tool services. The gateway decides who gets in.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lattice_sdk.companion import Companion
from lattice_sdk.errors import ConfigurationError, IdentityClosed, NotPermitted, TunnelFailed

if TYPE_CHECKING:
    from lattice_sdk.backends import Tunnel
    from lattice_sdk.lifecycle import Lifecycle

Protocol = Literal["tcp", "udp"]


class Forwards(Companion):
    """The forwards of one identity, set up again on each new tunnel.

    Args:
        wanted: bodies for the engine, as :func:`forward` makes them.
    """

    def __init__(self, wanted: Iterable[dict[str, Any]] = ()) -> None:
        self._wanted = {_key(one): one for one in wanted}
        self._ids: dict[tuple[str, int], str] = {}
        self._tunnel: Tunnel | None = None
        self._on_end: list[Callable[[], None]] = []
        self._changing = asyncio.Lock()  # a port that is on its way out may be asked for again

    async def tunnel_up(self, life: Lifecycle, tunnel: Tunnel) -> None:
        """Set all of them up."""
        if self._wanted:
            check_ingress(life)
        async with self._changing:
            ids = {key: await _set_up(tunnel, one) for key, one in self._wanted.items()}
            # Not before: where one of them fails, the former tunnel serves on.
            self._tunnel, self._ids = tunnel, ids

    async def tunnel_down(self) -> None:
        """Close the listeners, which wakes who waits for somebody to connect."""
        self._tunnel = None
        ends, self._on_end = self._on_end, []
        for end in ends:
            end()

    async def add(self, life: Lifecycle, wanted: dict[str, Any]) -> None:
        """Set one up now, and on each tunnel to come.

        Raises:
            ConfigurationError: the port has a forward or a listener.
            IdentityClosed: the identity has been closed, perhaps meanwhile.
            IdentityExpired: its life is over.
            NotPermitted: the identity accepts no ingress.
            TunnelFailed: the engine does not listen there.
        """
        check_ingress(life)
        key = _key(wanted)
        async with self._changing:
            tunnel = self._living_tunnel(life)
            if key in self._wanted:
                raise ConfigurationError(f"port {key[1]}/{key[0]} has a listener already")
            self._wanted[key] = wanted
            try:
                self._ids[key] = await _set_up(tunnel, wanted)
                self._living_tunnel(life)  # of an end meanwhile nobody would hear any more
            except BaseException:
                del self._wanted[key]
                self._ids.pop(key, None)
                raise

    async def remove(self, wanted: dict[str, Any]) -> None:
        """End one; what goes through it ends with it. Again without effect."""
        key = _key(wanted)
        async with self._changing:
            if self._wanted.get(key) is not wanted:
                return
            del self._wanted[key]
            number = self._ids.pop(key, None)
            if self._tunnel is not None and number is not None:
                with contextlib.suppress(Exception):  # an engine that has ended listens no more
                    await self._tunnel.request("delete_forward", number)

    def at_end(self, call: Callable[[], None]) -> None:
        """Have something called when the identity ends."""
        self._on_end.append(call)

    def _living_tunnel(self, life: Lifecycle) -> Tunnel:
        life.living()
        if self._tunnel is None:
            raise TunnelFailed("there is no tunnel to listen on", code="tunnel_gone")
        return self._tunnel


class Listener(socket.socket):
    """A listening socket at an agent's overlay address; made by :meth:`LatticeAgent.listen`.

    It is a Unix socket that nobody but this user reaches, to which the engine hands what arrives:
    a port of loopback would serve every process of the machine. Where a server library wants a
    listening socket, it takes this one.
    """

    def __init__(self, port: int, address: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._at = (address, port)
        self._directory = Path(tempfile.mkdtemp(prefix="lattice-listen-"))  # mode 0700
        # Also for a listener that is forgotten, or open when the interpreter ends.
        self._clean_up = weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._on_close: Callable[[], None] | None = None
        try:
            self.bind(str(self._directory / f"{port}.sock"))
            self.listen(128)
        except BaseException:
            self.close()
            raise

    @property
    def target(self) -> str:
        """Where the engine hands connections to."""
        return f"unix:{super().getsockname()}"

    def accept(self) -> tuple[Connection, tuple[str, int]]:
        """A connection, and the overlay address and port of who made it.

        Raises:
            OSError: the listener was closed, or the identity has ended.
        """
        accepted, source = super().accept()
        connection = Connection(fileno=accepted.detach())
        connection.at, connection.source = self._at, _source(source)
        return connection, connection.source

    def getsockname(self) -> tuple[str, int]:
        """Overlay address and port."""
        return self._at

    def when_closed(self, call: Callable[[], None]) -> None:
        """Have something called once it is closed."""
        self._on_close = call

    def close(self) -> None:
        """Stop listening. Again without effect."""
        with contextlib.suppress(OSError):
            # Closing alone does not wake a thread that waits in accept.
            self.shutdown(socket.SHUT_RDWR)
        super().close()
        self._clean_up()
        call, self._on_close = self._on_close, None
        if call is not None:
            call()


class Connection(socket.socket):
    """A connection that a :class:`Listener` accepted; ``getpeername`` tells who made it."""

    at: tuple[str, int] = ("", 0)
    source: tuple[str, int] = ("", 0)

    def getpeername(self) -> tuple[str, int]:
        """Overlay address and port of the other end."""
        return self.source

    def getsockname(self) -> tuple[str, int]:
        """Overlay address and port of this end."""
        return self.at


async def listen(life: Lifecycle, forwards: Forwards, port: int) -> Listener:
    """A listener on a port of an identity's overlay address.

    Raises:
        LatticeError: as :meth:`Forwards.add`.
    """
    if not 0 < port < 65536:
        raise ConfigurationError(f"{port} is not a TCP port")
    check_ingress(life)
    listener = Listener(port, life.identity.overlay_ip if life.identity else "")
    wanted = {"listenPort": port, "protocol": "tcp", "target": listener.target}
    try:
        await forwards.add(life, wanted)
    except BaseException:
        listener.close()
        raise
    # A listener that was forgotten without being closed must not be kept alive by this.
    weak = weakref.ref(listener)
    forwards.at_end(lambda: closing() if (closing := getattr(weak(), "close", None)) else None)

    def closed() -> None:
        home = life.runtime
        if home is not None:
            with contextlib.suppress(IdentityClosed):
                home.submit(forwards.remove(wanted))

    listener.when_closed(closed)
    return listener


def forward(
    port: int, target: str, protocol: Protocol = "tcp", proxy_protocol: Literal["v1"] | None = None
) -> dict[str, Any]:
    """The engine's body for a forward.

    Args:
        port: at the overlay address.
        target: ``HOST:PORT`` in the host's network.
        protocol: ``tcp`` or ``udp``.
        proxy_protocol: ``"v1"`` tells the target who connects, by a line before the data
            (https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt).

    Raises:
        ConfigurationError: it is no port, or no ``HOST:PORT``.
    """
    host, _, number = target.rpartition(":")
    if not 0 < port < 65536 or not host or not number.isdecimal() or not 0 < int(number) < 65536:
        raise ConfigurationError(
            f"{port} to {target!r} is no forward",
            hint="Write a port, and HOST:PORT of the target: {443: '127.0.0.1:9000'}",
        )
    body: dict[str, Any] = {"listenPort": port, "protocol": protocol, "target": target}
    if proxy_protocol is not None:
        body["proxyProtocol"] = proxy_protocol
    return body


def check_ingress(life: Lifecycle) -> None:
    """Raise if nobody may connect to the identity.

    Raises:
        NotPermitted: its preset accepts no ingress.
    """
    identity = life.identity
    if identity is not None and identity.ingress is not None and not identity.ingress:
        raise NotPermitted(
            f"the preset {identity.policy_preset} accepts no connections, so nobody could reach "
            "what listens",
            code="no_ingress",
            peer_id=identity.peer_id,
            hint="Enroll with the preset coordinator, or offer it as a tool service",
        )


async def _set_up(tunnel: Tunnel, wanted: dict[str, Any]) -> str:
    """Have the engine listen; its number for that."""
    from lattice_engine import EngineError

    try:
        made = await tunnel.request("add_forward", wanted)
    except EngineError as error:
        raise TunnelFailed(
            f"port {wanted['listenPort']} is not forwarded: {error.detail}", code=error.code
        ) from None
    return str(made["id"])


def _key(wanted: dict[str, Any]) -> tuple[str, int]:
    return wanted["protocol"], wanted["listenPort"]


def _source(name: object) -> tuple[str, int]:
    """Who connected: the engine binds its end to a name that says so."""
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
    host, _, port = text.rpartition("/")[2].rpartition(":")
    return (host, int(port)) if host and port.isdecimal() else ("", 0)
