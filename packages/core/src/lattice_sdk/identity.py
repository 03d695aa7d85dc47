"""An enrolled identity, as the SDK holds it and hooks see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import SecretStr

    from lattice_sdk.wire import AllowRule, Service


@dataclass(frozen=True)
class Identity:
    """One identity. A renewal makes a new one of these. Secrets are not in its ``repr``.

    Attributes:
        peer_id: its name at control plane and gateway.
        agent_name: what the caller calls it.
        server: URL of its control plane.
        overlay_ip: its address in the overlay, without prefix; empty where the server has no
            overlay to give.
        expires_at: the server's date of its end.
        policy_preset: what it is held to.
        services: what it may reach, with the names it is reached under.
        enrollment_token: what renews and deletes it.
        private_key: its WireGuard key.
        ingress: who may connect to it, as its preset says; ``None`` where the server does not tell.
        wireguard_config: for ``wg-quick``, complete; ``None`` where the server hands out none.
    """

    peer_id: str
    agent_name: str
    server: str
    overlay_ip: str
    expires_at: datetime
    policy_preset: str
    enrollment_token: SecretStr = field(repr=False)
    private_key: SecretStr = field(repr=False)
    wireguard_config: SecretStr | None = field(default=None, repr=False)
    workspace_id: str | None = None
    services: tuple[Service, ...] = ()
    allow: tuple[AllowRule, ...] = ()
    gateway_ip: str | None = None
    ingress: tuple[str, ...] | None = None

    @property
    def hosts(self) -> dict[str, str]:
        """Overlay addresses of the services by host name."""
        return {name: s.address for s in self.services for name in s.hostnames}
