"""What may be known of an identity in a sandbox, and tells its engine what it reaches: no secrets.

A document of JSON, with the names of the wire.
"""

from __future__ import annotations

from lattice_sdk.clock import now

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from lattice_sdk.identity import Identity

    Facts = Mapping[str, Any]

VERSION = 1
_OF_THE_ANSWER = ("peerId", "workspaceId", "gatewayIP", "ingress", "expiresAt")


def facts_of(identity: Identity, remaining: float) -> dict[str, Any]:
    """The facts of an identity.

    Args:
        identity: whose programs they are for.
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


def facts_of_answer(
    answer: Mapping[str, Any], *, asked: Mapping[str, Any], server: str, deadline: float
) -> dict[str, Any]:
    """The facts of an enrollment, before it has become an :class:`Identity`.

    Args:
        answer: the control plane's.
        asked: the body of the request.
        server: the control plane's URL.
        deadline: of the identity, on the monotonic clock.

    Raises:
        KeyError: the answer lacks what an answer has.
    """
    return {
        "version": VERSION,
        **{name: answer.get(name) for name in _OF_THE_ANSWER},
        "agentName": asked["agentName"],
        "policyPreset": answer.get("policyPreset") or asked.get("policyPreset") or "sandboxed",
        "overlayIP": answer["overlayIP"].partition("/")[0],
        "server": server,
        "services": answer.get("services") or [],
        "allow": asked.get("allow") or [],
        "deadline": deadline,
    }


def hosts(facts: Facts) -> dict[str, str]:
    """Overlay addresses by host name."""
    return {name: one["address"] for one in facts["services"] for name in one["hostnames"]}


def identity_of(facts: Facts) -> tuple[Identity, float]:
    """The identity without its secrets, and its deadline on the monotonic clock.

    Raises:
        ValueError: these are no facts of an identity.
    """
    from datetime import datetime

    from pydantic import SecretStr

    from lattice_sdk.identity import Identity
    from lattice_sdk.wire import AllowRule, Service

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
