"""httpx transports whose connections go through an agent's tunnel, and nowhere else.

httpx's own proxy support would lose the sentence of a refusal. So the proxy is spoken to below the
connection pool, where a connection is made: by :mod:`lattice_sdk.tunnelled`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpcore
import httpx

from lattice_sdk import direct, tunnelled
from lattice_sdk.errors import ConfigurationError, LatticeError
from lattice_sdk.lifecycle import Lifecycle

SocketOptions = Iterable[Any] | None
_TRANSPORT_OPTIONS = ("verify", "cert", "http1", "http2", "limits")
_WITH_TLS = (b"https", b"wss")
_WAY_OUT = ("transport", "proxy", "mounts", "app", "proxies", "trust_env", "uds", "local_address")


@cache
def with_httpx(kind: type[LatticeError]) -> type[LatticeError]:
    """An error that is one of ours and an :class:`httpx.ConnectError` too.

    Who uses httpx catches httpx's errors; who uses Lattice catches ours.
    """

    def __init__(self: Any, error: LatticeError) -> None:  # noqa: N807 - of the class made here
        Exception.__init__(self, str(error))
        self.__dict__.update(error.__dict__)
        self._request = None

    def __reduce__(self: Any) -> Any:  # noqa: N807 - likewise
        return kind.__reduce__(self)

    members = {"__init__": __init__, "__doc__": kind.__doc__, "__module__": kind.__module__}
    return type(kind.__name__, (kind, httpx.ConnectError), members)


@contextmanager
def _as_httpx() -> Iterator[None]:
    try:
        yield
    except LatticeError as error:
        raise with_httpx(type(error))(error) from None  # type: ignore[arg-type]


class _Backend(httpcore.NetworkBackend):
    def __init__(self, life: Callable[[], Lifecycle]) -> None:
        self._life = life
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.NetworkStream:
        life = self._life()
        with _as_httpx():
            if tunnelled.is_plain(life):
                address = direct.resolve(life, host, port)
                try:
                    return self._plain.connect_tcp(
                        address, port, timeout, socket_options=socket_options
                    )
                except httpcore.ConnectError as error:
                    raise direct.explain(life, error, host, port) from None
            proxy = tunnelled.proxy_of(life)
            request = tunnelled.connect_request(proxy, host, port)
            try:
                stream = self._plain.connect_tcp(
                    proxy.host, proxy.port, timeout, socket_options=socket_options
                )
            except httpcore.ConnectError as error:
                raise tunnelled.broken(life, OSError(str(error))) from None
            try:
                stream.write(request, timeout)
                reader = _Head()
                while not reader.feed(stream.read(tunnelled.HEAD_LIMIT, timeout)):
                    pass
                tunnelled.check(life, host, port, reader.status, reader.body)
            except BaseException as error:
                stream.close()
                _explain(life, error)
                raise
        return stream


class _AsyncBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, life: Callable[[], Lifecycle]) -> None:
        self._life = life
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.AsyncNetworkStream:
        life = self._life()
        with _as_httpx():
            if tunnelled.is_plain(life):
                address = direct.resolve(life, host, port)
                try:
                    return await self._plain.connect_tcp(
                        address, port, timeout, socket_options=socket_options
                    )
                except httpcore.ConnectError as error:
                    raise direct.explain(life, error, host, port) from None
            proxy = tunnelled.proxy_of(life)
            request = tunnelled.connect_request(proxy, host, port)
            try:
                stream = await self._plain.connect_tcp(
                    proxy.host, proxy.port, timeout, socket_options=socket_options
                )
            except httpcore.ConnectError as error:
                raise tunnelled.broken(life, OSError(str(error))) from None
            try:
                await stream.write(request, timeout)
                reader = _Head()
                while not reader.feed(await stream.read(tunnelled.HEAD_LIMIT, timeout)):
                    pass
                tunnelled.check(life, host, port, reader.status, reader.body)
            except BaseException as error:
                await stream.aclose()
                _explain(life, error)
                raise
        return stream

    async def sleep(self, seconds: float) -> None:
        await self._plain.sleep(seconds)


class _Head:
    """Collects the proxy's answer to a CONNECT.

    In HTTP and TLS the client speaks first, so nothing of the destination can come along.
    """

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self._data = b""

    def feed(self, data: bytes) -> bool:
        self._data += data
        head, separator, body = self._data.partition(b"\r\n\r\n")
        if not separator:
            if not data or len(self._data) > tunnelled.HEAD_LIMIT:
                raise httpcore.ReadError("the tunnel's proxy closed the connection")
            return False
        self.status, length = tunnelled.read_head(head)
        self.body = body
        return self.status == 200 or not data or len(body) >= min(length, tunnelled.BODY_LIMIT)


def _explain(life: Lifecycle, error: BaseException) -> None:
    """Raise why the connection to the proxy broke, where the identity's end is why."""
    if isinstance(error, (httpcore.NetworkError, OSError)) and not isinstance(error, LatticeError):
        raise tunnelled.broken(life, OSError(str(error))) from None


# Of the transports of httpx only what uses the pool is taken: all that their __init__ does is make
# another one, with authorities of its own, whose loading takes longer than all of the tunnel.
class TunnelTransport(httpx.HTTPTransport):
    """A transport of httpx through a tunnel. Keeps its agent alive."""

    def __init__(self, life: Callable[[], Lifecycle], **options: Any) -> None:
        self._pool = _Pool(network_backend=_Backend(life), **_pool(options))


class AsyncTunnelTransport(httpx.AsyncHTTPTransport):
    """The same for :class:`httpx.AsyncClient`."""

    def __init__(self, life: Callable[[], Lifecycle], **options: Any) -> None:
        self._pool = _AsyncPool(network_backend=_AsyncBackend(life), **_pool(options))


class _Pool(httpcore.ConnectionPool):
    def create_connection(self, origin: httpcore.Origin) -> Any:
        if self._ssl_context is None and origin.scheme in _WITH_TLS:
            self._ssl_context = _usual_trust(self._http2)
        return super().create_connection(origin)


class _AsyncPool(httpcore.AsyncConnectionPool):
    def create_connection(self, origin: httpcore.Origin) -> Any:
        if self._ssl_context is None and origin.scheme in _WITH_TLS:
            self._ssl_context = _usual_trust(self._http2)
        return super().create_connection(origin)


@cache
def _usual_trust(http2: bool) -> ssl.SSLContext:
    """One for all clients, made for the first that needs it.

    Args:
        http2: whether connections offer it; httpcore writes the offer into the context.
    """
    del http2
    context: ssl.SSLContext = httpx.create_ssl_context(trust_env=False)
    return context


def client_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the transport and what the client takes of a caller's options.

    Raises:
        ConfigurationError: an option would lead traffic past the tunnel.
    """
    leading_out = sorted(name for name in _WAY_OUT if name in options)
    if leading_out:
        raise ConfigurationError(
            f"{', '.join(leading_out)}: would lead the client's traffic past the tunnel",
            hint="Leave it out; for a client of your own use proxy_env()",
        )
    transport = {name: options[name] for name in _TRANSPORT_OPTIONS if name in options}
    return transport, {name: value for name, value in options.items() if name not in transport}


def _pool(options: dict[str, Any]) -> dict[str, Any]:
    limits: httpx.Limits = options.get("limits") or httpx.Limits(
        max_connections=100, max_keepalive_connections=20
    )
    verify, context = options.get("verify", True), None
    if verify is not True or options.get("cert"):
        context = httpx.create_ssl_context(verify=verify, cert=options.get("cert"), trust_env=False)
    return {
        "ssl_context": context,
        "max_connections": limits.max_connections,
        "max_keepalive_connections": limits.max_keepalive_connections,
        "keepalive_expiry": limits.keepalive_expiry,
        "http1": options.get("http1", True),
        "http2": options.get("http2", False),
    }
