"""What a program in a sandbox may know of the identity: everything but its secrets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import SecretStr

from lattice_sdk.clock import now
from lattice_sdk.identity import Identity
from lattice_sdk.wire import AllowRule, Service

VERSION = 1


def facts_of(identity: Identity, remaining: float) -> dict[str, Any]:
    """The identity as JSON.

    Args:
        identity: whose programs they are.
        remaining: seconds of life left.
    """
    return {
        "version": VERSION,
        "peerId": identity.peer_id,
        "agentName": identity.agent_name,
        "workspaceId": identity.workspace_id,
        "policyPreset": identity.policy_preset,
        "overlayIP": identity.overlay_ip,
        "gatewayIP": identity.gateway_ip,
        "server": identity.server,
        "services": [one.model_dump(mode="json", by_alias=True) for one in identity.services],
        "allow": [one.model_dump(mode="json", by_alias=True) for one in identity.allow],
        "ingress": None if identity.ingress is None else list(identity.ingress),
        "expiresAt": identity.expires_at.isoformat(),
        # On the clock that counts since the machine was started, inside as outside.
        "deadline": now() + remaining,
    }


def identity_of(facts: Mapping[str, Any]) -> tuple[Identity, float]:
    """The identity without its secrets, and its deadline on the monotonic clock.

    Raises:
        ValueError: these are no facts of an identity.
    """
    if facts.get("version") != VERSION:
        raise ValueError("they are of another version of lattice-sdk")
    try:
        ingress = facts["ingress"]
        identity = Identity(
            peer_id=str(facts["peerId"]),
            agent_name=str(facts["agentName"]),
            server=str(facts["server"]),
            overlay_ip=str(facts["overlayIP"]),
            expires_at=datetime.fromisoformat(facts["expiresAt"]),
            policy_preset=str(facts["policyPreset"]),
            enrollment_token=SecretStr(""),
            private_key=SecretStr(""),
            workspace_id=facts["workspaceId"],
            services=tuple(Service.model_validate(one) for one in facts["services"]),
            allow=tuple(AllowRule.model_validate(one) for one in facts["allow"]),
            gateway_ip=facts["gatewayIP"],
            ingress=None if ingress is None else tuple(map(str, ingress)),
        )
        return identity, float(facts["deadline"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{error} is missing or wrong") from None
