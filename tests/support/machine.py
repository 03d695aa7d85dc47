"""Facts of the machine that the tests run on."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path


def own_address() -> str:
    """An IPv4 address of this machine beside loopback: a network that a connector can advertise."""
    table = Path("/proc/net/fib_trie").read_text()
    for found in re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", table):
        if not ipaddress.ip_address(found).is_loopback:
            return str(found)
    raise AssertionError(
        "this machine has no IPv4 address beside loopback, so there is no network to advertise"
    )
