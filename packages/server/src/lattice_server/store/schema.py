"""The tables. Instants and durations are whole milliseconds; migrations bring them into being."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only in a column that is exactly INTEGER.
Sequence = BigInteger().with_variant(Integer(), "sqlite")

workspaces = Table(
    "workspaces",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("policy", JSON(none_as_null=True)),
)

tokens = Table(
    "tokens",
    metadata,
    Column("n", Sequence, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("workspace_id", String(128)),
    Column("service", String(128)),
    Column("presets", JSON),
    Column("allow_isolated", Boolean, nullable=False),
    Column("max_ttl", BigInteger),
    Column("max_lifetime", BigInteger),
    Column("uses", BigInteger),
    Column("used", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("allow", JSON(none_as_null=True)),
    # Who may use it, beyond its text: kinds of agent, and networks that it is sent from.
    Column("agent_types", JSON),
    Column("sources", JSON),
    # How many generations of sub-agents may come from it; null is the server's own limit.
    Column("delegation_depth", Integer),
    # The text before a rotation, and how long it still holds.
    Column("previous_hash", String(64), index=True),
    Column("previous_until", BigInteger),
    # Of kind delegation: the agent it comes from, and what the sub-agent is to be.
    Column("parent_id", String(64), index=True),
    Column("delegated", JSON),
    # Of kind trust, which has no text: whose JWTs are taken instead.
    Column("trust", JSON),
)

# An identity, agent or connected service. It stays as a memory (state expired or deleted) for the
# retention time, so that a late renewal or removal is answered with what happened.
peers = Table(
    "peers",
    metadata,
    Column("n", Sequence, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("name", String(128), nullable=False),
    Column("agent_type", String(128), nullable=False),
    Column("workspace_id", String(128), nullable=False),
    Column("preset", String(32), nullable=False),
    Column("allow", JSON, nullable=False),
    Column("address", String(15), nullable=False),
    Column("public_key", String(44), nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("issuer", String(64), nullable=False),
    Column("ttl", BigInteger, nullable=False),
    Column("max_ttl", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("max_expires_at", BigInteger),
    Column("renewals", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("ended_at", BigInteger),
    # Whose JWT it was enrolled with, where that was no token of this server.
    Column("subject", String(512)),
    # Of a sub-agent: who delegated to it, the first of the line, and how far it is from there.
    Column("parent_id", String(64)),
    Column("root_id", String(64)),
    Column("depth", Integer, nullable=False, server_default="0"),
    # How many generations may come from this one.
    Column("delegation_depth", Integer, nullable=False, server_default="0"),
    Index("ix_peers_parent", "parent_id", "state"),
    Index("ix_peers_root", "root_id", "state", "ended_at"),
    Index("ix_peers_state_expires", "state", "expires_at"),
    Index("ix_peers_state_ended", "state", "ended_at"),
    Index("ix_peers_workspace", "workspace_id", "state", "preset"),
    Index(
        "uq_peers_live_key",
        "public_key",
        unique=True,
        sqlite_where=text("state = 'active'"),
        postgresql_where=text("state = 'active'"),
    ),
)

services = Table(
    "services",
    metadata,
    Column("workspace_id", String(128), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("peer_id", String(64), nullable=False, unique=True),
    Column("address", String(15), nullable=False, unique=True),
    Column("hostnames", JSON, nullable=False),
    Column("ports", JSON, nullable=False),
    Column("designated", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False, server_default="service"),
    Column("networks", JSON, nullable=False, server_default="[]"),
)

# Host names that the egress connector of a workspace serves, each at an overlay address of its own,
# and which identities ask for which. A name goes with the last of them.
names = Table(
    "names",
    metadata,
    Column("workspace_id", String(128), primary_key=True),
    Column("name", String(253), primary_key=True),
    Column("address", String(15), nullable=False, unique=True),
)

name_uses = Table(
    "name_uses",
    metadata,
    Column("peer_id", String(64), primary_key=True),
    Column("workspace_id", String(128), nullable=False),
    Column("name", String(253), primary_key=True),
    Column("protocol", String(3), primary_key=True),
    Column("port", Integer, primary_key=True),
    Index("ix_name_uses_name", "workspace_id", "name"),
)

# An address is here as long as it is held (free_at is null) or rests in quarantine.
addresses = Table(
    "addresses",
    metadata,
    Column("address", String(15), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("free_at", BigInteger, index=True),
    Column("workspace_id", String(128)),
)

gateways = Table(
    "gateways",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("public_key", String(44), nullable=False),
    Column("endpoint", String(300), nullable=False),
    Column("version", String(64), nullable=False),
    Column("first_seen", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False, index=True),
    Column("type", String(32), nullable=False),
    Column("workspace_id", String(128)),
    Column("peer_id", String(64)),
    Column("name", String(128)),
    Column("data", JSON, nullable=False),
    sqlite_autoincrement=True,
)

# Refused flows added up, one row for each: who, to where, how often, first and last.
denials = Table(
    "denials",
    metadata,
    Column("n", Sequence, primary_key=True, autoincrement=True),
    Column("peer_id", String(64), nullable=False),
    Column("workspace_id", String(128), index=True),
    Column("name", String(128)),
    Column("source", String(64), nullable=False),
    Column("destination", String(64), nullable=False),
    Column("protocol", String(16), nullable=False),
    Column("port", Integer, nullable=False),
    Column("packets", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False, index=True),
    UniqueConstraint("peer_id", "destination", "protocol", "port"),
)

facts = Table(
    "facts",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", String(300), nullable=False),
)
