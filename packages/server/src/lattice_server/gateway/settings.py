"""What a gateway daemon is told, checked and completed before anything is started."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit


class GatewayError(Exception):
    """The gateway cannot start or go on; the message says what, why and what to do."""


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """Settings of one gateway daemon.

    Attributes:
        server: URL of the control plane, ``https://…`` or ``http://…``.
        token_file: file with the gateway token; read at each connection, so it can be replaced.
        state_dir: directory of the key, the lock and the engine; one daemon each.
        name: the gateway's name at the control plane.
        listen_port: UDP port of WireGuard, 0 for any free one (kept over restarts).
        endpoint: ``HOST[:PORT]`` that agents reach this gateway under.
        address: the gateway's overlay address with the overlay's prefix.
        namespace: ``own`` or ``host``; the engine's choice when ``None``.
        ca_file: certificate authorities to trust instead of the system's.
        keep_engine: whether the data plane goes on after SIGTERM.
    """

    server: str
    token_file: Path
    state_dir: Path
    name: str = "default"
    listen_port: int = 51820
    endpoint: str | None = None
    address: str = "10.96.0.1/16"
    namespace: Literal["own", "host"] | None = None
    ca_file: Path | None = None
    keep_engine: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.server)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise GatewayError(
                f"the server {self.server!r} is not a URL such as https://lattice.example.com"
            )
        try:
            ipaddress.IPv4Interface(self.address)
        except ValueError as error:
            raise GatewayError(
                f"the address {self.address!r} is not an IPv4 address with a prefix, "
                f"such as 10.96.0.1/16: {error}"
            ) from error
        if not 0 <= self.listen_port <= 65535:
            raise GatewayError(f"the listen port {self.listen_port} is not in 0…65535")
        if self.endpoint is None and not self.on_loopback:
            raise GatewayError(
                "agents on other machines need to know where this gateway is: "
                "give --endpoint HOST[:PORT], its address or name as they reach it"
            )

    @property
    def on_loopback(self) -> bool:
        """Whether the control plane is on this machine."""
        host = urlsplit(self.server).hostname or ""
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def stream_url(self) -> str:
        """URL of the control plane's gateway stream."""
        scheme, _, rest = self.server.rstrip("/").partition("://")
        return f"{'wss' if scheme == 'https' else 'ws'}://{rest}/api/v1/gateway/stream"

    @property
    def overlay(self) -> str:
        """The overlay network, ``10.96.0.0/16``."""
        return str(ipaddress.IPv4Interface(self.address).network)

    @property
    def overlay_ip(self) -> str:
        """The gateway's own overlay address without prefix."""
        return str(ipaddress.IPv4Interface(self.address).ip)

    def endpoint_at(self, port: int) -> str:
        """The endpoint agents are given: HOST[:PORT] completed with the port in use."""
        if self.endpoint is None:
            return f"127.0.0.1:{port}"
        host, colon, given = self.endpoint.rpartition(":")
        if colon and given.isdigit() and (":" not in host or host.endswith("]")):
            return self.endpoint
        bare = self.endpoint.strip("[]")
        return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"

    def token(self) -> str:
        """The gateway token as the file has it now.

        Raises:
            GatewayError: the file cannot be read or is empty.
        """
        try:
            token = self.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise GatewayError(
                f"the gateway token cannot be read from {self.token_file} ({reason}): make one "
                "with `lattice tokens create --kind gateway` and put it there, for this user"
            ) from error
        if not token or not token.isascii() or len(token.split()) != 1:
            raise GatewayError(f"{self.token_file} has no token: it must hold one line, the token")
        return token
