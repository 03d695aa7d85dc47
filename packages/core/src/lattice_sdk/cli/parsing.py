"""Reading what people write on a command line. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer


def parse_ports(texts: Sequence[str]) -> list[dict[str, Any]]:
    """``443`` or ``53/udp``, as the API wants it."""
    return [parse_port(text) for text in texts]


def parse_port(text: str) -> dict[str, Any]:
    """One port with its protocol.

    Raises:
        typer.BadParameter: it is none.
    """
    number, _, protocol = text.partition("/")
    protocol = protocol or "tcp"
    if not number.isascii() or not number.isdecimal() or not 0 < int(number) < 65536:
        raise typer.BadParameter(f"{text!r} is not a port: write 443 or 53/udp")
    if protocol not in ("tcp", "udp"):
        raise typer.BadParameter(f"{text!r} is neither tcp nor udp: write 443 or 53/udp")
    return {"port": int(number), "protocol": protocol}


def parse_destination(text: str) -> dict[str, Any]:
    """``HOST:PORT[/udp]``, with an IPv6 address in brackets.

    Raises:
        typer.BadParameter: it is none.
    """
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise typer.BadParameter(f"{text!r}: write an IPv6 address in brackets, [fd00::1]:443")
    if not separator or not host:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT, such as 10.96.0.7:443")
    return {"to": host, **parse_port(port)}


def parse_permit(text: str) -> dict[str, Any]:
    """``HOST[:PORT[/udp]]``, as a token permits it; without a port all ports.

    Raises:
        typer.BadParameter: the port is none.
    """
    host, separator, port = text.partition(":")
    return {"to": host, **(parse_port(port) if separator else {})}


def parse_forward(text: str) -> tuple[int, str]:
    """``LISTEN:HOST:PORT`` or ``LISTEN:PORT``: a port of the overlay address, and its target.

    Raises:
        typer.BadParameter: it is none.
    """
    listen, separator, target = text.partition(":")
    if not separator:
        raise typer.BadParameter(f"{text!r} is not LISTEN:HOST:PORT, such as 9000:127.0.0.1:9000")
    return int(parse_port(listen)["port"]), parse_target(target)


def parse_target(text: str) -> str:
    """``HOST:PORT`` of a service on the host's network, in the form the engine takes.

    Raises:
        typer.BadParameter: it is none.
    """
    if text.isascii() and text.isdecimal():
        text = f"127.0.0.1:{text}"
    found = parse_destination(text)
    host = f"[{found['to']}]" if ":" in found["to"] else found["to"]
    return f"{host}:{found['port']}"
