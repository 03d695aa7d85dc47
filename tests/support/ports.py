"""Ports for what listens later, or never."""

from __future__ import annotations

import random
import socket
from pathlib import Path

# The kernel gives ports of this range to whoever asks for any, at any time: see ip(7).
HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of 127.0.0.1 that is free for TCP and UDP and that the kernel gives to nobody else."""
    lowest = int(HANDED_OUT.read_text().split()[0])
    for _ in range(100):
        port = random.randrange(10_000, lowest)
        try:
            with socket.create_server(("127.0.0.1", port)):
                pass
            with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
                datagrams.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    raise AssertionError(f"no port from 10000 to {lowest} is free, in a hundred tries")
