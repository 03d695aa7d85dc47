"""Ports for what listens later, or again, or never."""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

__all__ = ["free_port"]

# The kernel gives ports of this range to whoever asks for any, at any time: see ip(7).
HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
TRIES = 100


def free_port(host: str = "127.0.0.1") -> int:
    """A port of an IPv4 address that is free for TCP and UDP, and if possible not of `HANDED_OUT`.

    So nobody gets it by chance while its owner does not listen.

    Raises:
        OSError: none was free, or the address is not this machine's.
    """
    first, last = map(int, HANDED_OUT.read_text().split())
    every = range(10_000, 65_536)
    kept = [port for port in every if not first <= port <= last] or every
    for port in random.sample(kept, min(TRIES, len(kept))):
        try:
            with socket.create_server((host, port)):
                pass
            with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
                datagrams.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return port
    raise OSError(errno.EADDRINUSE, f"no port of {host} is free, of those that were tried")
