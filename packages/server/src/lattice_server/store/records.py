"""Rows as values: what the rest of the program handles instead of database rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sqlalchemy import Row

from lattice_server.credentials import TokenKind
from lattice_server.policy import AgentRule, Grant, ServiceRule

# Kinds of service, and the types of their peers: what serves its own address alone, host names, or
# networks.
SERVICE, EGRESS, NETWORK = "service", "egress", "network"


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A row of ``peers`` (without its number). Instants and durations are in ms."""

    id: str
    kind: str
    name: str
    agent_type: str
    workspace_id: str
    preset: str
    allow: list[dict[str, Any]]
    address: str
    public_key: str
    token_hash: str
    issuer: str
    ttl: int
    max_ttl: int
    created_at: int
    expires_at: int
    max_expires_at: int | None
    renewals: int
    version: int
    state: str
    ended_at: int | None
    subject: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    depth: int = 0
    delegation_depth: int = 0

    @classmethod
    def of(cls, row: Row[Any]) -> PeerRecord:
        """The record of a full row of ``peers``."""
        return cls(**{key: value for key, value in row._mapping.items() if key != "n"})

    def values(self) -> dict[str, Any]:
        """The columns, for an insert."""
        return {name: getattr(self, name) for name in PEER_FIELDS}

    def changes(self, before: PeerRecord) -> dict[str, Any]:
        """The columns that differ from what they were."""
        return {
            name: value
            for name in PEER_FIELDS
            if (value := getattr(self, name)) != getattr(before, name)
        }

    def alive(self, now: int) -> bool:
        """Whether the identity holds at this instant (ms)."""
        return self.state == "active" and self.expires_at > now

    def rule(self) -> AgentRule:
        """The agent as the policy compiler sees it."""
        if not self.allow:
            return AgentRule(self.id, self.address, self.preset, parent=self.parent_id)
        allow: set[Grant] = set()
        names: set[Grant] = set()
        for a in self.allow:
            found = a.get("address")
            (names if found else allow).add(Grant(found or a["to"], a["protocol"], a["port"]))
        return AgentRule(
            self.id,
            self.address,
            self.preset,
            frozenset(allow),
            frozenset(names),
            self.parent_id,
        )

    def asked(self) -> list[dict[str, Any]]:
        """The allow list as it was asked for, without the addresses that its names got.

        What its patterns have been used for (``of``) was not asked for.
        """
        return [{k: v for k, v in a.items() if k != "address"} for a in self.allow if "of" not in a]


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A row of ``services``."""

    workspace_id: str
    name: str
    peer_id: str
    address: str
    hostnames: list[str]
    ports: list[dict[str, Any]]
    designated: bool
    created_at: int
    kind: str = "service"
    networks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, row: Row[Any]) -> ServiceRecord:
        """The record of a row of ``services``."""
        return cls(**row._mapping)

    def values(self) -> dict[str, Any]:
        """The columns, for an insert."""
        return asdict(self)

    def rule(self) -> ServiceRule:
        """The service as the policy compiler sees it."""
        ports = frozenset((port["protocol"], port["port"]) for port in self.ports)
        return ServiceRule(
            self.name,
            self.address,
            ports,
            self.designated,
            frozenset(self.hostnames),
            frozenset(self.networks),
        )


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A row of ``tokens``, without the hashes."""

    n: int
    id: str
    kind: TokenKind
    workspace_id: str | None
    service: str | None
    presets: list[str] | None
    allow_isolated: bool
    max_ttl: int | None
    max_lifetime: int | None
    uses: int | None
    used: int
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    allow: list[dict[str, Any]] | None = None
    agent_types: list[str] | None = None
    sources: list[str] | None = None
    delegation_depth: int | None = None
    previous_until: int | None = None
    parent_id: str | None = None
    delegated: dict[str, Any] | None = None
    trust: dict[str, Any] | None = None

    @classmethod
    def of(cls, row: Row[Any]) -> TokenRecord:
        """The record of a row of ``tokens``."""
        return cls(**{key: row._mapping[key] for key in TOKEN_FIELDS})

    def values(self) -> dict[str, Any]:
        """The columns, for an insert; the hash is not among them."""
        return {key: value for key, value in asdict(self).items() if key != "n"}


PEER_FIELDS = tuple(field.name for field in fields(PeerRecord))
TOKEN_FIELDS = tuple(field.name for field in fields(TokenRecord))
