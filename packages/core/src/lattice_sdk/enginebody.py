"""What the engine is told of a tunnel: bodies of its control API, from plain values."""

from __future__ import annotations

from lattice_sdk import policy, wgtext
from lattice_sdk.sandbox.facts import hosts

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from typing import Any

    from lattice_sdk.sandbox.facts import Facts

SOONEST = 0.001  # seconds; an end that lies behind is at once
KEEPER_START = 20.0  # seconds that the engine gives a keeper of namespaces, startTimeout of its own


def changes(facts: Facts, expires_in: float, revoke: dict[str, Any] | None) -> dict[str, Any]:
    """The body of a ``PATCH``: what a renewal may change.

    Args:
        facts: of the identity.
        expires_in: seconds until the tunnel must be down.
        revoke: from :func:`revocation`.
    """
    body: dict[str, Any] = {
        "expiresIn": max(SOONEST, expires_in),
        "hosts": hosts(facts),
        "policy": {"preset": facts["policyPreset"], "grants": policy.grants(facts)},
    }
    return body | ({"revoke": revoke} if revoke is not None else {})


def revocation(url: str, token: str, ca_file: str) -> dict[str, Any]:
    """The ``DELETE`` that ends an identity."""
    headers = {"Authorization": f"Bearer {token}"}
    return {"url": url, "method": "DELETE", "headers": headers, "caFile": ca_file}


def probe(facts: Facts, timeout: float) -> dict[str, Any]:
    """How the tunnel is proven, as a part of its body: by an answer of the gateway's."""
    if not facts["gatewayIP"]:
        return {}
    return {"probe": {"address": facts["gatewayIP"], "timeout": timeout}}


def patience(proof: float, *, namespace: bool) -> float:
    """Seconds to wait for the engine to make a tunnel.

    Args:
        proof: seconds for its handshake, and again for the answer of :func:`probe`.
        namespace: whether it ends in a namespace, and so may be the first that needs a keeper.
    """
    return proof * 2 + 5 + (KEEPER_START if namespace else 0)


def wireguard(text: str, private_key: str) -> dict[str, Any]:
    """The WireGuard part of the body, from a configuration.

    Args:
        text: the configuration.
        private_key: where the configuration has none.

    Raises:
        WireGuardConfigError: it is not usable.
    """
    interface, peer = wgtext.sections(text)
    return {
        "interface": {
            "privateKey": interface.get("privatekey", [""])[-1] or private_key,
            "addresses": list(wgtext.many(interface, "address")),
            "mtu": wgtext.number(interface, "mtu") or wgtext.DEFAULT_MTU,
        },
        "peer": {
            "publicKey": peer["publickey"][-1],
            "presharedKey": peer.get("presharedkey", [""])[-1],
            "endpoint": peer["endpoint"][-1],
            "allowedIPs": list(wgtext.many(peer, "allowedips")),
            "persistentKeepalive": wgtext.number(peer, "persistentkeepalive") or 0,
        },
    }
