"""The wire contract of the Enrollment API: what client and control plane say to each other.

JSON with camelCase names on the wire, snake_case here. Times are RFC 3339 in UTC; durations are
Go-style strings (:mod:`lattice_sdk.durations`).
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
)
from pydantic.alias_generators import to_camel

from lattice_sdk.durations import format_duration, parse_duration

WIREGUARD_KEY_BYTES = 32  # Curve25519, https://www.wireguard.com/papers/wireguard.pdf


def _duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError("a duration is a string such as 90s, 15m or 1h30m")
    return parse_duration(value)


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time needs a zone, such as 2026-05-06T11:00:00Z")
    return value.astimezone(UTC)


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _public_key(value: str) -> str:
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != WIREGUARD_KEY_BYTES:
        raise ValueError(
            "not a WireGuard key: 32 bytes as 44 characters of base64, as `wg pubkey` prints"
        )
    if not any(raw):
        raise ValueError("the all-zero key belongs to nobody")
    return base64.b64encode(raw).decode()


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
]
Time = Annotated[
    datetime,
    AfterValidator(_utc),
    PlainSerializer(_rfc3339, return_type=str, when_used="json"),
]
PublicKey = Annotated[str, AfterValidator(_public_key)]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
Protocol = Literal["tcp", "udp"]


class WireModel(BaseModel):
    """Base of all on the wire. Unknown fields in answers are ignored, so that servers may grow."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class RequestModel(WireModel):
    """Base of request bodies: an unknown field is an error, so a misspelt one is not lost."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class AllowRule(RequestModel):
    """One destination of the ``isolated`` preset: an overlay address or a host name."""

    to: Annotated[str, Field(min_length=1, max_length=253)]
    port: Port
    protocol: Protocol = "tcp"


class EnrollRequest(RequestModel):
    """Body of ``POST /api/v1/agent-enroll``."""

    agent_name: Name
    agent_type: Name | None = None
    workspace_id: Name | None = None
    ttl: Duration | None = None
    policy_preset: Name | None = None
    public_key: PublicKey | None = None
    allow: Annotated[list[AllowRule], Field(max_length=1000)] = Field(default_factory=list)


class RenewRequest(RequestModel):
    """Body of ``POST /api/v1/peers/{id}/renew``; all of it may be left out."""

    ttl: Duration | None = None
    public_key: PublicKey | None = None


class DelegateRequest(RequestModel):
    """Body of ``POST /api/v1/agents/{id}/delegate``: what the sub-agent is to be.

    ``ttl`` is its life until the next renewal, and the longest it may ask for. ``allow`` and
    ``maxLifetime`` narrow what it may have; nothing widens it beyond its parent.
    """

    sub_agent_name: Name
    agent_type: Name | None = None
    ttl: Duration | None = None
    policy_preset: Name | None = None
    max_lifetime: Duration | None = None
    allow: Annotated[list[AllowRule], Field(max_length=1000)] | None = None
    delegation_depth: Annotated[int, Field(ge=0, le=100, strict=True)] | None = None


class DelegateResponse(WireModel):
    """Answer to a delegation. ``enrollment_token`` is a secret, good for one enrollment.

    ``expires_at`` is the end of the token, and of the sub-agent's life as its parent's is now.
    """

    enrollment_token: SecretStr
    expires_at: Time
    parent_ref: str
    sub_agent_name: str
    policy_preset: str | None = None
    workspace_id: str | None = None
    max_expires_at: Time | None = None


class ServicePort(WireModel):
    """A port of a tool service."""

    port: Port
    protocol: Protocol = "tcp"


class Service(WireModel):
    """A tool service that the identity may reach, with the names it is reached under."""

    name: str
    hostnames: list[str] = Field(default_factory=list)
    address: str
    ports: list[ServicePort] = Field(default_factory=list)


class EnrollResponse(WireModel):
    """Answer to an enrollment or a renewal. The first five fields are the published contract.

    ``enrollment_token`` and a ``PrivateKey`` line in ``wireguard_config`` are secrets.
    """

    peer_id: str
    overlay_ip: Annotated[str, Field(alias="overlayIP")]
    enrollment_token: SecretStr
    wireguard_config: SecretStr
    expires_at: Time
    workspace_id: str | None = None
    policy_preset: str | None = None
    renew_after: Time | None = None
    max_expires_at: Time | None = None
    gateway_ip: Annotated[str | None, Field(alias="gatewayIP")] = None
    services: list[Service] = Field(default_factory=list)
    ingress: list[str] | None = None


class PeerRef(WireModel):
    """A peer of a line of delegations."""

    peer_id: str
    name: str
    policy_preset: str
    expires_at: Time


class Reach(WireModel):
    """What an identity reaches as things are now, and who may come to it."""

    services: list[Service] = Field(default_factory=list)
    ingress: list[str] | None = None


class Peer(WireModel):
    """A peer as ``GET /api/v1/peers/{id}`` shows it. Holds no secret.

    ``subject`` is whose JWT it was enrolled with, where it was enrolled with one. ``parent_ref`` is
    the agent that delegated to it. ``chain`` is the line from the first agent to the parent and
    ``sub_agents`` who came from this one; both are left out of lists.
    """

    peer_id: str
    name: str
    kind: Literal["agent", "service"] = "agent"
    agent_type: str
    workspace_id: str
    policy_preset: str
    overlay_ip: Annotated[str, Field(alias="overlayIP")]
    public_key: str
    created_at: Time
    expires_at: Time | None
    max_expires_at: Time | None = None
    renewals: int = 0
    allow: list[AllowRule] = Field(default_factory=list)
    subject: str | None = None
    parent_ref: str | None = None
    delegation_depth: int = 0
    chain: list[PeerRef] | None = None
    sub_agents: list[PeerRef] | None = None


class PeerPage(WireModel):
    """A page of peers; ``next`` is the cursor of the next page, absent on the last."""

    items: list[Peer]
    next: str | None = None


class Problem(WireModel):
    """An error as RFC 9457 ``application/problem+json``; ``code`` is stable."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    code: str
    instance: str | None = None
