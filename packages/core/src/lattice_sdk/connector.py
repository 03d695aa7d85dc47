"""A tool service's way into the overlay: its address, and forwards to where it really listens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lattice_sdk.agent import Face
from lattice_sdk.errors import BackendUnavailable, ConfigurationError, TunnelFailed

if TYPE_CHECKING:
    from datetime import timedelta

    from pydantic import SecretStr

    from lattice_sdk.backends import Tunnel


class ServiceConnector(Face):
    """Takes a tool service's overlay address and forwards its ports, until it is closed.

    ::

        with ServiceConnector(server, token, "github-tools", listen={443: "127.0.0.1:9000"}):
            ...

    Args:
        server: URL of the control plane; ``LATTICE_SERVER`` when ``None``.
        token: service token, or an admin's.
        name: of the service, as it was added.
        listen: by port of the service, ``HOST:PORT`` that connections are forwarded to.
        protocol: of all ports, ``tcp`` or ``udp``.
        workspace_id: the token's workspace when left out.
        ttl: life from one renewal to the next.
        proxy_protocol: ``"v1"`` tells the target who connects, by a line before the data
            (https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt).
        verify: file of certificate authorities for the control plane.
        timeout: seconds until opening is given up.

    Raises:
        ConfigurationError: a setting is missing or wrong.
    """

    def __init__(
        self,
        server: str | None,
        token: str | SecretStr | None,
        name: str,
        *,
        listen: Mapping[int, str],
        protocol: Literal["tcp", "udp"] = "tcp",
        workspace_id: str | None = None,
        ttl: str | timedelta | None = None,
        proxy_protocol: Literal["v1"] | None = None,
        verify: Path | str | bool | None = None,
        timeout: float | None = None,
    ) -> None:
        from lattice_sdk.terms import make_terms

        self._forwards = [
            _forward(port, target, protocol, proxy_protocol) for port, target in listen.items()
        ]
        super().__init__(
            make_terms(
                server=server,
                token=token,
                workspace=workspace_id,
                backend="userspace",
                verify=verify,
                timeout=timeout,
                request={"agent_name": name, "ttl": ttl},
                service=True,
            ),
            _Forwarding(self._forwards),
        )

    @property
    def name(self) -> str:
        """The service's name."""
        return self._life.terms.name


class _Forwarding:
    """Sets the forwards up on each new tunnel.

    Apart from the connector, so that a lifecycle does not keep its face alive.
    """

    def __init__(self, forwards: list[dict[str, Any]]) -> None:
        self._forwards = forwards

    async def __call__(self, tunnel: Tunnel) -> None:
        from lattice_engine import EngineError
        from lattice_sdk.backends.userspace import UserspaceTunnel

        if not isinstance(tunnel, UserspaceTunnel):
            raise BackendUnavailable("a connector needs the userspace backend")
        for forward in self._forwards:
            try:
                await tunnel.request("add_forward", forward)
            except EngineError as error:
                raise TunnelFailed(
                    f"port {forward['listenPort']} is not forwarded: {error.detail}",
                    code=error.code,
                ) from None


def _forward(port: int, target: str, protocol: str, proxy_protocol: str | None) -> dict[str, Any]:
    host, _, number = target.rpartition(":")
    if not 0 < port < 65536 or not host or not number.isdecimal() or not 0 < int(number) < 65536:
        raise ConfigurationError(
            f"{port} to {target!r} is no forward",
            hint="Write a port, and HOST:PORT of the target: {443: '127.0.0.1:9000'}",
        )
    forward: dict[str, Any] = {"listenPort": port, "protocol": protocol, "target": target}
    if proxy_protocol is not None:
        forward["proxyProtocol"] = proxy_protocol
    return forward
