"""Connections by the kernel's own sockets, where the network that they live in is the tunnel's."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address, ip_network
from typing import TYPE_CHECKING

from lattice_sdk import policy, reach
from lattice_sdk.errors import (
    DestinationUnreachable,
    IdentityClosed,
    IdentityExpired,
    LatticeError,
    Refused,
    TunnelFailed,
)
from lattice_sdk.sandbox.facts import facts_of

if TYPE_CHECKING:
    from lattice_sdk.identity import Identity
    from lattice_sdk.lifecycle import Lifecycle

# By a reset, or by ICMP as the kernel passes it on (RFC 1122, 4.2.3.9): the gateway's two ways.
_REFUSED = (
    *(errno.ECONNREFUSED, errno.EACCES, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM),
    errno.ECONNRESET,  # just after it was taken, as by a listener that closes
)


def connect(
    life: Lifecycle,
    make: Callable[[], socket.socket],
    host: str,
    port: int,
    timeout: float | None,
) -> socket.socket:
    """A connected TCP socket.

    Args:
        life: of the identity.
        make: makes a socket of the tunnel's network; raises :class:`OSError` where that has gone.
        host: overlay address, or a name that the enrollment told.
        port: TCP port.
        timeout: seconds until the connection is given up; the socket has none afterwards.

    Raises:
        Refused: the policy does not grant it.
        DestinationUnreachable: it does not answer.
        IdentityExpired: the identity is over, or ended meanwhile.
        TunnelFailed: the network has gone.
    """
    address = resolve(life, host, port)
    try:
        stream = make()
    except OSError as error:
        raise _gone(life, error) from None
    try:
        stream.settimeout(timeout)
        stream.connect((address, port))
    except TimeoutError:
        stream.close()
        raise DestinationUnreachable(
            f"{host}:{port} did not answer within {timeout:g} s", code="connect_timeout"
        ) from None
    except OSError as error:
        stream.close()
        raise explain(life, error, host, port) from None
    except BaseException:
        stream.close()
        raise
    stream.settimeout(None)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def resolve(life: Lifecycle, host: str, port: int) -> str:
    """The IPv4 address of a destination, by what the enrollment told and nothing else.

    Raises:
        Refused: there is none.
        IdentityExpired: the identity is over.
        TunnelFailed: the tunnel is being rebuilt.
    """
    identity = life.living()
    if not 0 < port < 65536:
        raise ValueError(f"{port} is not a TCP port")
    address, destination = _address(identity, host), f"{host}:{port}"
    if address is not None and _has_way(life, address):
        return address
    why = "there is no IPv6 in the tunnel"
    if address is not None:
        why = "it is not in the tunnel's network"
    elif ":" not in host:
        why = "a name that is not on its list; there is no DNS in the tunnel"
    reach.doubt(life)
    raise _refused(identity, f"{destination} ({why})", destination)


def explain(life: Lifecycle, error: BaseException, host: str, port: int) -> LatticeError:
    """The error for a connection that was not made."""
    try:
        identity = life.living()
    except LatticeError as ended:
        return ended  # an identity that ended meanwhile says so itself
    number, address, destination = _number(error), _address(identity, host), f"{host}:{port}"
    if number not in _REFUSED or address is None:
        return _gone(life, error)
    reach.doubt(life)
    if policy.is_granted(facts_of(identity, 0), address, port):
        return DestinationUnreachable(
            f"{destination} is granted and does not take the connection ({os.strerror(number)})",
            peer_id=identity.peer_id,
        )
    return _refused(identity, destination, destination)


def _number(error: BaseException | None) -> int:
    """The system's error number, of what lies behind where a library has wrapped it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return 0


def _address(identity: Identity, host: str) -> str | None:
    with contextlib.suppress(ValueError):
        address = ip_address(host)
        four = address if address.version == 4 else address.ipv4_mapped
        return None if four is None else str(four)
    wanted = host.rstrip(".").lower()
    return next((to for name, to in identity.hosts.items() if name.lower() == wanted), None)


def _has_way(life: Lifecycle, address: str) -> bool:
    """Whether the tunnel takes packets for it; if not, a socket of an interface waits in vain."""
    config = life.living_tunnel().config
    if config is None:
        return True
    networks = (ip_network(network, strict=False) for network in config.allowed_ips)
    return any(IPv4Address(address) in network for network in networks)


def _refused(identity: Identity, told: str, destination: str) -> Refused:
    return Refused(
        policy.refusal(facts_of(identity, 0), told),
        peer_id=identity.peer_id,
        preset=identity.policy_preset,
        destination=destination,
    )


def _gone(life: Lifecycle, error: BaseException) -> LatticeError:
    try:
        identity = life.living()
    except (IdentityClosed, IdentityExpired) as ended:
        return ended
    return TunnelFailed(
        f"the tunnel's network is not there ({getattr(error, 'strerror', None) or error}); "
        "it is being rebuilt",
        code="network_gone",
        peer_id=identity.peer_id,
        hint="Try again",
    )
