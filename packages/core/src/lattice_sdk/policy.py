"""What a policy grants, as far as the enrollment tells. It only explains: the gateway decides."""

from __future__ import annotations

from lattice_sdk.sandbox.facts import hosts

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from typing import Any

    from lattice_sdk.sandbox.facts import Facts

SHOWN = 8  # grants that a refusal lists
_ADVICE = {
    "isolated": "To allow it, enroll with this destination in `allow`.",
    "coordinator": "To allow it, add it as a tool service of the workspace, or enroll the other "
    "agent with a preset that accepts ingress.",
}
_OTHERS = "To allow it, designate a tool service for it in the workspace, or enroll with a preset "
_OTHERS += "that reaches it."


def grants(facts: Facts) -> list[dict[str, Any]]:
    """Destinations: ``to``, ``port`` and ``protocol``."""
    found = [
        {"to": service["address"], "port": port["port"], "protocol": port.get("protocol", "tcp")}
        for service in facts["services"]
        for port in service["ports"]
    ]
    named = hosts(facts)
    found += [
        {"to": rule["to"], "port": rule["port"], "protocol": rule.get("protocol", "tcp")}
        for rule in facts["allow"]
        if rule["to"].lower() not in named
    ]
    return found


def is_granted(facts: Facts, address: str, port: int, protocol: str = "tcp") -> bool:
    """Whether a destination is among the grants that are known."""
    return any(
        (grant["port"], grant["protocol"]) == (port, protocol) and _holds(grant["to"], address)
        for grant in grants(facts)
    )


def _holds(to: str, address: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(to, strict=False)
    except ValueError:
        return False  # a name, which has an address of its own among the services


def refusal(facts: Facts, destination: str, protocol: str = "tcp") -> str:
    """The sentence for a destination that is not granted; the engine's proxy says the same."""
    names = {address: name for name, address in sorted(hosts(facts).items(), reverse=True)}
    known = grants(facts)
    shown = [
        f"{names.get(grant['to'], grant['to'])}:{grant['port']}"
        + ("" if grant["protocol"] == "tcp" else f"/{grant['protocol']}")
        for grant in known[:SHOWN]
    ]
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    preset = facts["policyPreset"]
    return (
        f'the preset "{preset}" does not allow {protocol} to {destination}; '
        f"it allows {', '.join(shown) or 'nothing'}{more}. "
        f"{_ADVICE.get(preset, _OTHERS)}"
    )
