"""Reading what people write on a command line: :mod:`lattice_sdk.destinations`, as options.

Each function raises :class:`typer.BadParameter` for what is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import typer

from lattice_sdk import destinations

T = TypeVar("T")


def parse_ports(texts: Sequence[str]) -> list[dict[str, Any]]:
    """``443`` or ``53/udp``, as the API wants it."""
    return [parse_port(text) for text in texts]


def parse_port(text: str) -> dict[str, Any]:
    """One port with its protocol."""
    return _parsed(destinations.parse_port, text)


def parse_destination(text: str) -> dict[str, Any]:
    """``HOST:PORT[/udp]``, with an IPv6 address in brackets."""
    return _parsed(destinations.parse_destination, text)


def parse_permit(text: str) -> dict[str, Any]:
    """``HOST[:PORT[/udp]]``, as a token permits it; without a port all ports."""
    host, separator, port = text.partition(":")
    return {"to": host, **(parse_port(port) if separator else {})}


def parse_forward(text: str) -> tuple[int, str]:
    """``LISTEN:HOST:PORT`` or ``LISTEN:PORT``: a port of the overlay address, and its target."""
    return _parsed(destinations.parse_forward, text)


def parse_target(text: str) -> str:
    """``HOST:PORT`` of a service on the host's network, in the form the engine takes."""
    return _parsed(destinations.parse_target, text)


def _parsed(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
