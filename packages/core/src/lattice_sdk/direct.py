"""Connections by the kernel's own sockets, where the network that they live in is the tunnel's."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from lattice_sdk import policy
from lattice_sdk.errors import (
    DestinationUnreachable,
    IdentityClosed,
    IdentityExpired,
    LatticeError,
    Refused,
    TunnelFailed,
)

if TYPE_CHECKING:
    from lattice_sdk.identity import Identity

# By a reset, or by ICMP as the kernel passes it on (RFC 1122, 4.2.3.9): the gateway's two ways.
_REFUSED = (errno.ECONNREFUSED, errno.EACCES, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM)


def connect(
    living: Callable[[], Identity],
    make: Callable[[], socket.socket],
    host: str,
    port: int,
    timeout: float | None,
    doubt: Callable[[], None] = lambda: None,
) -> socket.socket:
    """A connected TCP socket.

    Args:
        living: gives the identity while it lives, and else raises why it does not.
        make: makes a socket of the tunnel's network; raises :class:`OSError` where that has gone.
        host: overlay address, or a name that the enrollment told.
        port: TCP port.
        timeout: seconds until the connection is given up; the socket has none afterwards.
        doubt: called when it is refused: policy may have changed.

    Raises:
        Refused: the policy does not grant it.
        DestinationUnreachable: it does not answer.
        IdentityExpired: the identity is over, or ended meanwhile.
        TunnelFailed: the network has gone.
    """
    identity = living()
    if not 0 < port < 65536:
        raise ValueError(f"{port} is not a TCP port")
    address, destination = _resolve(identity, host), f"{host}:{port}"
    if address is None:
        why = "there is no IPv6 in the tunnel"
        if ":" not in host:
            why = "a name that is not on its list; there is no DNS in the tunnel"
        doubt()
        raise _refused(identity, f"{destination} ({why})", destination)
    try:
        stream = make()
    except OSError as error:
        raise _gone(living, error) from None
    try:
        stream.settimeout(timeout)
        stream.connect((address, port))
    except TimeoutError:
        stream.close()
        raise DestinationUnreachable(
            f"{destination} did not answer within {timeout:g} s", code="connect_timeout"
        ) from None
    except OSError as error:
        stream.close()
        identity = living()  # an identity that ended meanwhile says so itself
        if error.errno not in _REFUSED:
            raise _gone(living, error) from None
        doubt()
        if policy.is_granted(identity, address, port):
            raise DestinationUnreachable(
                f"{destination} is granted and does not take the connection ({error.strerror})",
                peer_id=identity.peer_id,
            ) from None
        raise _refused(identity, destination, destination) from None
    except BaseException:
        stream.close()
        raise
    stream.settimeout(None)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


def _resolve(identity: Identity, host: str) -> str | None:
    """The IPv4 address, by what the enrollment told and nothing else."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        four = address if address.version == 4 else address.ipv4_mapped
        return None if four is None else str(four)
    wanted = host.rstrip(".").lower()
    return next((to for name, to in identity.hosts.items() if name.lower() == wanted), None)


def _refused(identity: Identity, told: str, destination: str) -> Refused:
    return Refused(
        policy.refusal(identity, told),
        peer_id=identity.peer_id,
        preset=identity.policy_preset,
        destination=destination,
    )


def _gone(living: Callable[[], Identity], error: OSError) -> LatticeError:
    try:
        identity = living()
    except (IdentityClosed, IdentityExpired) as ended:
        return ended
    return TunnelFailed(
        f"the tunnel's network is not there ({error.strerror or error}); it is being rebuilt",
        code="network_gone",
        peer_id=identity.peer_id,
        hint="Try again",
    )
