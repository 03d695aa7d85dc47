"""The second dialect of the Enrollment API, which some published servers speak.

Answers are wrapped in ``{"code", "data", "msg"}``; an error is HTTP 200 with the real status in
``code``. The identity is named ``peerName``, its life ``ttlSeconds``; ``workspaceId`` and
``agentType`` are required. ``expiresAt`` may be absent. There is no renewal: one enrolls anew under
a new name in time and switches over. It is found out from the first answer.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr, ValidationError

from lattice_sdk.clock import ServerClock, now
from lattice_sdk.errors import ConfigurationError, UnexpectedAnswer
from lattice_sdk.wire import EnrollRequest, EnrollResponse

PATH = "/api/v1/agent-enroll"
DEFAULT_TTL = timedelta(hours=1)
NAME_LIMIT = 128  # characters of an agent's name


def is_wrapped(body: Any) -> bool:
    """Whether an answer's body is of the second dialect."""
    return (
        isinstance(body, dict)
        and isinstance(body.get("code"), int)
        and not isinstance(body["code"], bool)
        and ("msg" in body or "data" in body)
    )


def wrapped_status(body: dict[str, Any]) -> int:
    """The real HTTP status: 0 is success too, and of a longer code the first three digits count."""
    code = abs(int(body["code"]))
    if code == 0:
        return 200
    status = int(str(code)[:3])
    return status if 100 <= status <= 599 else 500


def names_identity(body: dict[str, Any]) -> bool:
    """Whether an answer tells of an identity that has been made."""
    data = body.get("data")
    return isinstance(data, dict) and bool(data.get("peerName") or data.get("peerId"))


def request_body(request: EnrollRequest, name: str) -> dict[str, Any]:
    """The body of an enrollment.

    Raises:
        ConfigurationError: no workspace was named, which this dialect needs.
    """
    if request.workspace_id is None:
        raise ConfigurationError(
            "this control plane needs the workspace to be named",
            hint="Pass workspace_id=…, or set LATTICE_WORKSPACE",
        )
    body: dict[str, Any] = {
        "agentName": name,
        "agentType": request.agent_type or request.agent_name,
        "workspaceId": request.workspace_id,
        "policyPreset": request.policy_preset or "sandboxed",
        "ttlSeconds": int((request.ttl or DEFAULT_TTL).total_seconds()),
    }
    if request.public_key is not None:
        body["publicKey"] = request.public_key
    return body


def read_response(
    body: dict[str, Any], request: EnrollRequest, token: SecretStr, clock: ServerClock, sent: float
) -> EnrollResponse:
    """The answer to an enrollment in the words of the first dialect.

    Args:
        body: the wrapped answer.
        request: what was asked.
        token: stands for the identity's own where the server hands out none.
        clock: for the date of the end.
        sent: moment of the request; where the server tells no end, the life counts from there.

    Raises:
        UnexpectedAnswer: it names no identity.
    """
    data = body.get("data")
    data = dict(data) if isinstance(data, dict) else {}
    life = (request.ttl or DEFAULT_TTL).total_seconds()
    granted = data.get("ttlSeconds")
    if isinstance(granted, (int, float)) and not isinstance(granted, bool) and granted > 0:
        life = float(granted)
    told = {
        "peerId": data.get("peerName") or data.get("peerId"),
        "overlayIP": data.get("overlayIP") or data.get("overlayIp") or "",
        "enrollmentToken": data.get("enrollmentToken") or data.get("token") or token,
        "wireguardConfig": data.get("wireguardConfig") or "",
        "expiresAt": data.get("expiresAt")
        or clock.date(sent + life)
        or datetime.now(UTC) + timedelta(seconds=life - (now() - sent)),
        "workspaceId": data.get("workspaceId") or request.workspace_id,
        "policyPreset": data.get("policyPreset") or request.policy_preset,
        "gatewayIP": data.get("gatewayIP"),
        "services": data.get("services") or [],
    }
    try:
        return EnrollResponse.model_validate(told)
    except ValidationError as error:
        fields = ", ".join(sorted({str(item["loc"][0]) for item in error.errors()}))
        raise UnexpectedAnswer(
            f"the answer to the enrollment has no good {fields}",
            hint="Check the versions of control plane and SDK",
        ) from None


def delete_path(peer: str) -> str:
    """Where an identity is deleted; with the query ``workspaceId``."""
    return f"{PATH}/{quote(peer, safe='')}"


def successor_name(name: str) -> str:
    """A new name for the same agent, for the identity that takes over."""
    suffix = f"-{secrets.token_hex(4)}"
    return name[: NAME_LIMIT - len(suffix)] + suffix
