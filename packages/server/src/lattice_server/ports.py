"""Ports for what listens later, or again, or never."""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

__all__ = ["free_port", "is_free"]

# The kernel gives ports of this range to whoever asks for any, at any time: see ip(7).
HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRIES = 100

# Not the shared generator: processes that seed it alike would all find the same port.
_random = random.SystemRandom()


def free_port(host: str = "127.0.0.1") -> int:
    """A port of an IPv4 address that is free for TCP and UDP, and if possible not of `HANDED_OUT`.

    So nobody gets it by chance while its owner does not listen.

    Raises:
        OSError: none was free, or the address is not this machine's.
    """
    first, last = map(int, HANDED_OUT.read_text().split())
    every = range(10_000, 65_536)
    kept = [port for port in every if not first <= port <= last] or every
    for port in _random.sample(kept, min(TRIES, len(kept))):
        if is_free(port, host):
            return port
    raise OSError(errno.EADDRINUSE, f"no port of {host} is free, of those that were tried")


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nobody has a port of an IPv4 address, for TCP or UDP.

    Raises:
        OSError: the address is not this machine's, or the port is none that this user may have.
    """
    try:
        with socket.create_server((host, port)):
            pass
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            datagrams.bind((host, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True
