"""Ports for what listens later, or never."""

from __future__ import annotations

import random
import socket
from pathlib import Path

# The kernel gives ports of this range to whoever asks for any, at any time: see ip(7).
HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of 127.0.0.1 that is free for TCP and UDP, and if possible not of `HANDED_OUT`."""
    first, last = map(int, HANDED_OUT.read_text().split())
    every = range(10_000, 65_536)
    kept = [port for port in every if not first <= port <= last] or every
    for port in random.sample(kept, 100):
        try:
            with socket.create_server(("127.0.0.1", port)):
                pass
            with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
                datagrams.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    raise AssertionError("no port is free, in a hundred tries")
