"""Facts of the machine that the tests run on."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from pathlib import Path


def own_address() -> str:
    """An IPv4 address of this machine beside loopback: a network that a connector can advertise.

    The one that the machine itself takes where it has a way out, since others come and go: that of
    the pods' bridge, for one, while other tests run pods.
    """
    with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as unsent:
        unsent.connect(("192.0.2.1", 9))  # RFC 5737: nobody's; no packet is sent
        return str(unsent.getsockname()[0])
    table = Path("/proc/net/fib_trie").read_text()
    for found in re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", table):
        if not ipaddress.ip_address(found).is_loopback:
            return str(found)
    raise AssertionError(
        "this machine has no IPv4 address beside loopback, so there is no network to advertise"
    )
