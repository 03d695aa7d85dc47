"""Bodies of the management API. The Enrollment API's are in :mod:`lattice_sdk.wire`."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from lattice_sdk.wire import Duration, Name, Port, Protocol, RequestModel, Time, WireModel
from lattice_server import destinations, presets
from lattice_server.jwks import check_source

# Far beyond any use, and far from where a date overflows.
LONGEST = timedelta(days=3650)
LONGEST_OVERLAP = timedelta(days=7)

_HOSTNAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$"


def _positive(value: timedelta) -> timedelta:
    if not timedelta(seconds=1) <= value <= LONGEST:
        raise ValueError("has to be from 1s to ten years")
    return value


def _overlap(value: timedelta) -> timedelta:
    if not timedelta(0) <= value <= LONGEST_OVERLAP:
        raise ValueError("at most 168h: who still uses the former text would never notice")
    return value


def _preset_names(value: list[str]) -> list[str]:
    # Which presets there are depends on the workspace.
    if not all(presets.NAME.fullmatch(name) for name in value):
        raise ValueError("each the name of a preset, such as sandboxed")
    return sorted(set(value))


def _network(value: str) -> str:
    try:
        return str(ip_network(value.strip(), strict=False))
    except ValueError:
        raise ValueError("a network such as 10.0.0.0/8 or 2001:db8::/32, or an address") from None


Network = Annotated[str, Field(max_length=64), AfterValidator(_network)]
# A kind of agent; each * stands for any characters.
AgentTypePattern = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9*][A-Za-z0-9._*-]*$")
]
AgentTypes = Annotated[list[AgentTypePattern], Field(min_length=1, max_length=100)]
Sources = Annotated[list[Network], Field(min_length=1, max_length=100)]
Depth = Annotated[int, Field(ge=0, le=100, strict=True)]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
Hostname = Annotated[str, Field(max_length=253, pattern=_HOSTNAME)]
ServiceName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class WorkspaceBody(RequestModel):
    """Body of ``POST /api/v1/workspaces``."""

    workspace_id: Name


class Workspace(WireModel):
    """A workspace."""

    workspace_id: str
    created_at: Time


def _destination(value: str) -> str:
    return value if value == destinations.ANYTHING else destinations.parse(value).text


AdvertisedNetwork = Annotated[str, Field(max_length=18), AfterValidator(destinations.check_network)]


class PermitBody(RequestModel):
    """What identities of a token may have in ``allow``; a port or protocol left out is any.

    ``to`` is an overlay address, a CIDR, a host name, ``*.`` and a host name, or ``*`` for all
    host names.
    """

    to: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_destination)]
    port: Port | None = None
    protocol: Protocol | None = None

    def record(self) -> dict[str, Any]:
        """As the store keeps it."""
        return self.model_dump(exclude_none=True)


class TokenBody(RequestModel):
    """Body of ``POST /api/v1/tokens``."""

    kind: Literal["workspace", "service", "gateway", "observer", "admin"]
    workspace_id: Name | None = None
    service: ServiceName | None = None
    presets: Annotated[list[str], AfterValidator(_preset_names)] | None = None
    max_ttl: Annotated[PositiveDuration | None, Field(alias="maxTTL")] = None
    max_lifetime: PositiveDuration | None = None
    uses: Annotated[int, Field(ge=1, le=10**9, strict=True)] | None = None
    expires_in: PositiveDuration | None = None
    allow_isolated: Annotated[bool, Field(strict=True)] = False
    allow: Annotated[list[PermitBody], Field(max_length=1000)] | None = None
    agent_types: AgentTypes | None = None
    sources: Sources | None = None
    delegation_depth: Depth | None = None

    @model_validator(mode="after")
    def _fits_its_kind(self) -> TokenBody:
        bound = self.kind in ("workspace", "service")
        if bound and self.workspace_id is None:
            raise ValueError(f"a token of kind {self.kind} needs a workspaceId")
        if not bound and self.workspace_id is not None:
            raise ValueError(f"a token of kind {self.kind} belongs to no workspace")
        if (self.kind == "service") != (self.service is not None):
            raise ValueError("service names the service of a token of kind service, and only that")
        limits = self.presets is not None or self.allow_isolated or self.allow is not None
        if self.kind != "workspace" and limits:
            raise ValueError("presets, allowIsolated and allow belong to tokens of kind workspace")
        if self.kind != "workspace" and self.uses is not None:
            raise ValueError("uses belongs to tokens of kind workspace")
        bound = self.agent_types is not None or self.delegation_depth is not None
        if self.kind != "workspace" and bound:
            raise ValueError("agentTypes and delegationDepth belong to tokens of kind workspace")
        return self


class RotateBody(RequestModel):
    """Body of ``POST /api/v1/tokens/{id}/rotate``: how long the former text holds as well."""

    overlap: Annotated[Duration, AfterValidator(_overlap)] = timedelta(0)


class Token(WireModel):
    """A token without its secret. ``token`` is in the answer to its creation alone."""

    id: str
    kind: str
    workspace_id: str | None
    service: str | None
    presets: list[str] | None
    max_ttl: Annotated[str | None, Field(alias="maxTTL")]
    max_lifetime: str | None
    uses: int | None
    used: int
    allow_isolated: bool
    allow: list[PermitBody] | None = None
    agent_types: list[str] | None = None
    sources: list[str] | None = None
    delegation_depth: int | None = None
    parent_ref: str | None = None
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    former_holds_until: Time | None = None
    token: str | None = None


def _issuer(value: str) -> str:
    if not value.isprintable():
        raise ValueError("an issuer as its tokens name it: https://…")
    return value


def _key_source(value: str) -> str:
    return check_source(value)


def _claims(value: dict[str, str]) -> dict[str, str]:
    if not value:
        raise ValueError("at least one claim, else every token of the issuer would be taken")
    for name, pattern in value.items():
        if not name or len(name) > 256 or not 0 < len(pattern) <= 512:
            raise ValueError("a claim is a name, or a path with slashes, and a pattern")
    return value


class TrustBody(RequestModel):
    """Body of ``POST /api/v1/trusts``: which JWTs may enroll, and what they get.

    ``claims`` are patterns by claim, in which ``*`` stands for any characters; all have to fit.
    ``jwksUri`` left out is found by OpenID discovery. ``maxAge`` is how old a token may be.
    """

    workspace_id: Name
    issuer: Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_issuer)]
    audience: Annotated[str, Field(min_length=1, max_length=512)]
    jwks_uri: Annotated[str, Field(max_length=1024), AfterValidator(_key_source)] | None = None
    claims: Annotated[dict[str, str], Field(max_length=20), AfterValidator(_claims)]
    max_age: PositiveDuration | None = None
    presets: Annotated[list[str], AfterValidator(_preset_names)] | None = None
    max_ttl: Annotated[PositiveDuration | None, Field(alias="maxTTL")] = None
    max_lifetime: PositiveDuration | None = None
    uses: Annotated[int, Field(ge=1, le=10**9, strict=True)] | None = None
    expires_in: PositiveDuration | None = None
    allow_isolated: Annotated[bool, Field(strict=True)] = False
    allow: Annotated[list[PermitBody], Field(max_length=1000)] | None = None
    agent_types: AgentTypes | None = None
    sources: Sources | None = None
    delegation_depth: Depth | None = None

    @model_validator(mode="after")
    def _has_keys(self) -> TrustBody:
        if self.jwks_uri is None:
            # Where discovery looks: https://openid.net/specs/openid-connect-discovery-1_0.html
            check_source(self.issuer)
            if self.issuer.startswith("file:"):
                raise ValueError("this issuer has no discovery; name its keys with jwksUri")
        return self


class Trust(WireModel):
    """A trust."""

    id: str
    workspace_id: str
    issuer: str
    audience: str
    jwks_uri: str | None
    claims: dict[str, str]
    max_age: str | None
    presets: list[str] | None
    max_ttl: Annotated[str | None, Field(alias="maxTTL")]
    max_lifetime: str | None
    uses: int | None
    used: int
    allow_isolated: bool
    allow: list[PermitBody] | None = None
    agent_types: list[str] | None
    sources: list[str] | None
    delegation_depth: int | None
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None


class PortBody(RequestModel):
    """A port of a tool service."""

    port: Annotated[int, Field(ge=1, le=65535, strict=True)]
    protocol: Protocol = "tcp"


class ServiceBody(RequestModel):
    """Body of ``POST /api/v1/services``. The default host name is ``<name>.lattice``."""

    name: ServiceName
    workspace_id: Name
    hostnames: Annotated[list[Hostname], Field(max_length=50)] = Field(default_factory=list)
    ports: Annotated[list[PortBody], Field(max_length=100)] = Field(default_factory=list)
    designated: Annotated[bool, Field(strict=True)] = True
    kind: Literal["service", "egress", "network"] = "service"
    networks: Annotated[list[AdvertisedNetwork], Field(max_length=100)] = Field(
        default_factory=list
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ServiceBody:
        if self.kind == "service" and not self.ports:
            raise ValueError("a tool service needs at least one port")
        if self.kind != "service" and (self.ports or self.hostnames):
            raise ValueError("ports and hostnames belong to tool services")
        if (self.kind == "network") != bool(self.networks):
            raise ValueError("networks are what a connector of kind network advertises")
        return self


class ServiceChange(RequestModel):
    """Body of ``PATCH /api/v1/services/{name}``; what is left out stays."""

    hostnames: Annotated[list[Hostname], Field(max_length=50)] | None = None
    ports: Annotated[list[PortBody], Field(min_length=1, max_length=100)] | None = None
    designated: Annotated[bool, Field(strict=True)] | None = None
    networks: Annotated[list[AdvertisedNetwork], Field(min_length=1, max_length=100)] | None = None

    def fields(self) -> dict[str, Any]:
        """What is to change, as the store keeps it."""
        changed: dict[str, Any] = {}
        if self.hostnames is not None:
            changed["hostnames"] = sorted(set(self.hostnames))
        if self.ports is not None:
            changed["ports"] = port_records(self.ports)
        if self.designated is not None:
            changed["designated"] = self.designated
        if self.networks is not None:
            changed["networks"] = sorted(set(self.networks))
        return changed


def port_records(ports: list[PortBody]) -> list[dict[str, Any]]:
    """Ports as the store keeps them: sorted, each once."""
    return [
        {"port": port, "protocol": protocol}
        for port, protocol in sorted({(p.port, p.protocol) for p in ports})
    ]


class ManagedService(WireModel):
    """A tool service as the management API shows it."""

    name: str
    workspace_id: str
    address: str
    hostnames: list[str]
    ports: list[PortBody]
    designated: bool
    kind: str = "service"
    networks: list[str] = Field(default_factory=list)
    peer_id: str
    connected: bool
    created_at: Time


class Event(WireModel):
    """An entry of the event log."""

    seq: int
    time: Time
    type: str
    workspace_id: str | None
    peer_id: str | None
    name: str | None
    data: dict[str, Any]


class EventPage(WireModel):
    """A page of events; ``next`` is the ``after`` of the next page, absent on the last."""

    items: list[Event]
    next: int | None = None


class Denial(WireModel):
    """Refused flows of one peer to one place, added up; without a place, those of all others."""

    peer_id: str
    workspace_id: str | None
    name: str | None
    source: str
    destination: str | None
    protocol: str | None
    port: int | None
    packets: int
    first_at: Time
    last_at: Time


class DenialPage(WireModel):
    """A page of denials; ``next`` is the cursor of the next page."""

    items: list[Denial]
    next: str | None = None


class WorkspacePage(WireModel):
    """A page of workspaces; ``next`` is the cursor of the next page."""

    items: list[Workspace]
    next: str | None = None


class TokenPage(WireModel):
    """A page of tokens; ``next`` is the cursor of the next page."""

    items: list[Token]
    next: str | None = None


class ServicePage(WireModel):
    """A page of services; ``next`` is the cursor of the next page."""

    items: list[ManagedService]
    next: str | None = None


class TrustPage(WireModel):
    """A page of trusts; ``next`` is the cursor of the next page."""

    items: list[Trust]
    next: str | None = None
