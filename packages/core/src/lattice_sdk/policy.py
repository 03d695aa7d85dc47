"""What a policy grants, as far as the enrollment tells. It only explains: the gateway decides."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lattice_sdk.identity import Identity

SHOWN = 8  # grants that a refusal lists
_ADVICE = {
    "isolated": "To allow it, enroll with this destination in `allow`.",
    "coordinator": "To allow it, add it as a tool service of the workspace, or enroll the other "
    "agent with a preset that accepts ingress.",
}
_OTHERS = "To allow it, designate a tool service for it in the workspace, or enroll with a preset "
_OTHERS += "that reaches it."


def grants(identity: Identity) -> list[dict[str, Any]]:
    """Destinations: ``to``, ``port`` and ``protocol``."""
    found = [
        {"to": service.address, "port": port.port, "protocol": port.protocol}
        for service in identity.services
        for port in service.ports
    ]
    named = {name for service in identity.services for name in service.hostnames}
    found += [
        rule.model_dump(mode="json") for rule in identity.allow if rule.to.lower() not in named
    ]
    return found


def is_granted(identity: Identity, address: str, port: int, protocol: str = "tcp") -> bool:
    """Whether a destination is among the grants that are known."""
    return any(
        (grant["port"], grant["protocol"]) == (port, protocol) and _holds(grant["to"], address)
        for grant in grants(identity)
    )


def _holds(to: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(to, strict=False)
    except ValueError:
        return False  # a name, which has an address of its own among the services


def refusal(identity: Identity, destination: str, protocol: str = "tcp") -> str:
    """The sentence for a destination that is not granted; the engine's proxy says the same."""
    names = {address: name for name, address in sorted(identity.hosts.items(), reverse=True)}
    known = grants(identity)
    shown = [
        f"{names.get(grant['to'], grant['to'])}:{grant['port']}"
        + ("" if grant["protocol"] == "tcp" else f"/{grant['protocol']}")
        for grant in known[:SHOWN]
    ]
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return (
        f'the preset "{identity.policy_preset}" does not allow {protocol} to {destination}; '
        f"it allows {', '.join(shown) or 'nothing'}{more}. "
        f"{_ADVICE.get(identity.policy_preset, _OTHERS)}"
    )
