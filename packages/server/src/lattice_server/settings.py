"""Settings of the control plane: arguments, then ``LATTICE_SERVER_*``, then these defaults."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lattice_sdk.durations import parse_duration


def _duration(value: object) -> object:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return timedelta(seconds=value)
    if isinstance(value, str):
        try:
            return timedelta(seconds=float(value))
        except ValueError:
            return parse_duration(value)
    return value


Span = Annotated[timedelta, BeforeValidator(_duration), Field(ge=timedelta(0))]


def _list(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Words = Annotated[list[str], NoDecode, BeforeValidator(_list)]
Networks = Annotated[list[IPv4Network | IPv6Network], NoDecode, BeforeValidator(_list)]


def _default_data_dir() -> Path:
    # https://specifications.freedesktop.org/basedir-spec/latest/
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "lattice" / "server"


class ServerSettings(BaseSettings):
    """How a control plane runs. Durations are seconds as numbers or Go-style strings (``5m``).

    Attributes:
        database: an SQLAlchemy URL; left out means ``lattice.db`` (SQLite) in ``data_dir``.
        overlay: the IPv4 network of the identities; its first host is the gateway.
        gateway_wait: how long an enrollment or a renewal waits for the gateway's acknowledgement.
        delete_wait: the same for a removal, which is answered either way.
        quarantine: how long an address rests before another identity gets it.
        reconcile_interval: the pace of the reconciler; zero switches it off.
        workspace_addresses: how many overlay addresses one workspace may have, those that rest
            included. Without a limit (zero) a workspace that has half of the overlay gets none of
            the last sixteenth, which is for the others.
        default_ttl: the life of an identity whose request names none.
        default_lifetime: how long an identity can be renewed when its token does not say.
        retention: how long ended peers are remembered, so that late calls get a true answer.
        event_retention: how long events are kept.
        event_limit: how many events are kept at most, and denials, and ended peers; workspaces
            share them, and whoever has more than its share loses its oldest.
        delegation_depth: how many generations of sub-agents may come from an agent whose token does
            not say; zero forbids delegation.
        sub_agent_limit: how many sub-agents and unused delegations one agent may have beneath it,
            in all generations; four times as many with those whose addresses still rest.
        insecure_http: permits to listen on a network address without TLS.
        denial_limit: how many refused packets in ``denial_window`` are too many, so that the agent
            is ended (quarantine); zero switches it off.
        denial_window: see there.
        webhook_url: where events are delivered to; nowhere when left out.
        webhook_secret_file: file with the secret that deliveries are signed with.
        webhook_events: types of events that are delivered, separated by commas; all when left out.
        auth_failures_per_minute: how many failures to authenticate one source may have, and one
            token that holds no more; zero switches it off.
        connections: how many connections there may be at once.
        connections_per_source: how many of one address, or of one IPv6 site.
        issuer_ca_file: certificate authorities of issuers of JWTs, PEM; the system's when left out.
        trusted_proxies: networks whose X-Forwarded-For is believed, separated by commas; nobody's
            when left out.
    """

    model_config = SettingsConfigDict(env_prefix="LATTICE_SERVER_", extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8420
    data_dir: Path = Field(default_factory=_default_data_dir)
    database: str | None = None
    overlay: IPv4Network = IPv4Network("10.96.0.0/16")
    gateway_wait: Span = timedelta(seconds=5)
    delete_wait: Span = timedelta(seconds=2)
    quarantine: Span = timedelta(minutes=5)
    reconcile_interval: Span = timedelta(seconds=60)
    workspace_addresses: Annotated[int, Field(ge=0)] = 0
    default_ttl: Span = timedelta(hours=1)
    default_lifetime: Span = timedelta(hours=24)
    retention: Span = timedelta(hours=24)
    event_retention: Span = timedelta(days=30)
    event_limit: Annotated[int, Field(ge=1000)] = 1_000_000
    delegation_depth: Annotated[int, Field(ge=0, le=100)] = 3
    sub_agent_limit: Annotated[int, Field(ge=0)] = 64
    denial_limit: Annotated[int, Field(ge=0)] = 0
    denial_window: Span = timedelta(seconds=60)
    webhook_url: str | None = None
    webhook_secret_file: Path | None = None
    webhook_events: Words = Field(default_factory=list)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure_http: bool = False
    auth_failures_per_minute: Annotated[int, Field(ge=0)] = 60
    connections: Annotated[int, Field(ge=16)] = 8192
    connections_per_source: Annotated[int, Field(ge=1)] = 1024
    trusted_proxies: Networks = Field(default_factory=list)
    issuer_ca_file: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("overlay")
    @classmethod
    def _room(cls, value: IPv4Network) -> IPv4Network:
        if not 8 <= value.prefixlen <= 30:
            raise ValueError("the overlay needs a prefix from /8 to /30, such as 10.96.0.0/16")
        return value

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL that is used."""
        return self.database or f"sqlite+aiosqlite:///{self.data_dir / 'lattice.db'}"

    @cached_property
    def gateway_address(self) -> str:
        """The gateway's overlay address: the first host of the overlay."""
        return str(self.overlay.network_address + 1)

    @cached_property
    def overlay_text(self) -> str:
        """The overlay as each answer has it."""
        return str(self.overlay)
