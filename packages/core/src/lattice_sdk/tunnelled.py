"""Connections through a tunnel's proxy: sockets, and transports of httpx.

By HTTP CONNECT: other than a SOCKS reply, its refusal carries the engine's sentence. The proxy
resolves the names.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from typing import TYPE_CHECKING

from lattice_sdk import direct, reach
from lattice_sdk.errors import DestinationUnreachable, LatticeError, Refused, TunnelFailed

if TYPE_CHECKING:
    from lattice_sdk.backends import Proxy
    from lattice_sdk.lifecycle import Lifecycle

HEAD_LIMIT = 16 * 1024  # bytes of the proxy's answer before the body
BODY_LIMIT = 64 * 1024


def is_plain(life: Lifecycle) -> bool:
    """Whether this process's own network is the tunnel, so that there is no proxy to take.

    Raises:
        IdentityClosed: the agent is not open.
        IdentityExpired: its life is over.
    """
    tunnel = life.living_tunnel()
    return tunnel.has_sockets and tunnel.proxy is None


def proxy_of(life: Lifecycle) -> Proxy:
    """The proxy of a living identity.

    Raises:
        IdentityClosed: the agent is not open.
        IdentityExpired: its life is over.
        TunnelFailed: its backend has no proxy.
    """
    identity = life.living()
    tunnel = life.tunnel
    if tunnel is None or tunnel.proxy is None:
        raise TunnelFailed(
            f"the tunnel backend {life.backend} carries no traffic of this process",
            code="no_proxy",
            peer_id=identity.peer_id,
            hint="Use backend='userspace', or bring the tunnel up yourself with wireguard_config",
        )
    return tunnel.proxy


def connect(life: Lifecycle, host: str, port: int, timeout: float | None) -> socket.socket:
    """A connected TCP socket through the tunnel.

    Args:
        life: whose tunnel.
        host: overlay address, or a name that the enrollment told.
        port: TCP port.
        timeout: seconds until the connection is given up; the socket has none afterwards.

    Raises:
        Refused: the policy does not grant it.
        DestinationUnreachable: it does not answer.
        IdentityExpired: the identity is over, or ended meanwhile.
    """
    tunnel = life.living_tunnel()
    if tunnel.has_sockets:
        return direct.connect(life, tunnel.new_socket, host, port, timeout)
    proxy = proxy_of(life)
    request = connect_request(proxy, host, port)
    try:
        stream = socket.create_connection((proxy.host, proxy.port), timeout)
    except OSError as error:
        raise broken(life, error) from None
    try:
        try:
            stream.sendall(request)
            head = _read_head(stream)
            status, length = read_head(head)
            body = b""
            while status != 200 and len(body) < min(length, BODY_LIMIT):
                chunk = stream.recv(min(length, BODY_LIMIT) - len(body))
                if not chunk:
                    break
                body += chunk
        except TimeoutError:
            raise DestinationUnreachable(
                f"{host}:{port} did not answer within {timeout:g} s", code="connect_timeout"
            ) from None
        except OSError as error:
            raise broken(life, error) from None
        check(life, host, port, status, body)
    except BaseException:
        stream.close()
        raise
    stream.settimeout(None)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def connect_request(proxy: Proxy, host: str, port: int) -> bytes:
    """The request for a tunnel to a destination (RFC 9110, 9.3.6).

    Raises:
        ValueError: host or port are no such.
    """
    if not 0 < port < 65536:
        raise ValueError(f"{port} is not a TCP port")
    name = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
    if not name or any(character <= " " or character == "/" for character in name):
        raise ValueError(f"{host!r} is not a host")
    pair = f"{proxy.username}:{proxy.password.get_secret_value()}".encode()
    return (
        f"CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n"
        f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n\r\n"
    ).encode("ascii")


def read_head(head: bytes) -> tuple[int, int]:
    """Status and length of the body of the proxy's answer.

    Raises:
        OSError: it is no such answer.
    """
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
        raise ConnectionError("the tunnel's proxy did not answer in HTTP")
    length = 0
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-length" and value.strip().isdecimal():
            length = int(value)
    return int(words[1]), length


def check(life: Lifecycle, host: str, port: int, status: int, body: bytes) -> None:
    """Raise what the proxy's answer to a CONNECT means, if it is not yes."""
    if status == 200:
        return
    detail = ""
    with contextlib.suppress(ValueError):
        document = json.loads(body)
        detail = str(document.get("detail") or "") if isinstance(document, dict) else ""
    identity = life.living()  # an identity that ended meanwhile says so itself
    destination = f"{host}:{port}"
    if status == 403:
        reach.doubt(life)
        raise Refused(
            detail or f"the preset {identity.policy_preset} does not allow {destination}",
            peer_id=identity.peer_id,
            preset=identity.policy_preset,
            destination=destination,
        )
    if status in (502, 503, 504):
        reach.doubt(life)  # a grant that has gone meanwhile looks like this
        raise DestinationUnreachable(
            detail or f"{destination} does not answer", peer_id=identity.peer_id
        )
    raise TunnelFailed(
        detail or f"the tunnel's proxy answered {status}",
        code="proxy_failed",
        peer_id=identity.peer_id,
    )


def broken(life: Lifecycle, error: OSError) -> LatticeError:
    """The error for a proxy that cannot be reached: most often the identity's end."""
    try:
        identity = life.living()
    except LatticeError as ended:
        return ended
    return TunnelFailed(
        f"the tunnel's proxy is not there ({error.strerror or error}); it is being rebuilt",
        code="proxy_gone",
        peer_id=identity.peer_id,
        hint="Try again",
    )


def _read_head(stream: socket.socket) -> bytes:
    """Up to the empty line and not a byte more: what follows is the destination's."""
    head = b""
    while (end := head.find(b"\r\n\r\n")) < 0:
        seen = stream.recv(HEAD_LIMIT, socket.MSG_PEEK)
        if not seen or len(head) > HEAD_LIMIT:
            raise ConnectionError("the tunnel's proxy closed the connection")
        cut = (head + seen).find(b"\r\n\r\n")
        take = len(seen) if cut < 0 else cut + 4 - len(head)
        head += stream.recv(take)
    return head[:end]
