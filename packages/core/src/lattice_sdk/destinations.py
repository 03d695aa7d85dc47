"""Destinations as people write them: ``HOST:PORT``, ``PORT/udp``, ``LISTEN:HOST:PORT``. Pure.

Each function raises :class:`ValueError` with a sentence for what is none.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from typing import Any


def parse_port(text: str) -> dict[str, Any]:
    """``443`` or ``53/udp``: a port with its protocol."""
    number, _, protocol = text.partition("/")
    protocol = protocol or "tcp"
    if not number.isascii() or not number.isdecimal() or not 0 < int(number) < 65536:
        raise ValueError(f"{text!r} is not a port: write 443 or 53/udp")
    if protocol not in ("tcp", "udp"):
        raise ValueError(f"{text!r} is neither tcp nor udp: write 443 or 53/udp")
    return {"port": int(number), "protocol": protocol}


def parse_destination(text: str) -> dict[str, Any]:
    """``HOST:PORT[/udp]``, with an IPv6 address in brackets."""
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, [fd00::1]:443")
    if not separator or not host:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 10.96.0.7:443")
    return {"to": host, **parse_port(port)}


def parse_forward(text: str) -> tuple[int, str]:
    """``LISTEN:HOST:PORT`` or ``LISTEN:PORT``: a port of the overlay address, and its target."""
    listen, separator, target = text.partition(":")
    if not separator:
        raise ValueError(f"{text!r} is not LISTEN:HOST:PORT, such as 9000:127.0.0.1:9000")
    return int(parse_port(listen)["port"]), parse_target(target)


def parse_target(text: str) -> str:
    """``HOST:PORT`` of a service on the host's network, in the form the engine takes."""
    if text.isascii() and text.isdecimal():
        text = f"127.0.0.1:{text}"
    found = parse_destination(text)
    host = f"[{found['to']}]" if ":" in found["to"] else found["to"]
    return f"{host}:{found['port']}"
