"""Ways into the overlay: a tool service at its address, a network at its own addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lattice_sdk.agent import Face
from lattice_sdk.companion import Companion
from lattice_sdk.errors import ConfigurationError, TunnelFailed
from lattice_sdk.ingress import Forwards, forward

if TYPE_CHECKING:
    from datetime import timedelta

    from pydantic import SecretStr

    from lattice_sdk.backends import Tunnel
    from lattice_sdk.lifecycle import Lifecycle


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

        forwards = Forwards(
            forward(port, target, protocol, proxy_protocol) for port, target in listen.items()
        )
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
            forwards,
        )

    @property
    def name(self) -> str:
        """The service's name."""
        return self._life.terms.name


class NetworkConnector(Face):
    """Leads agents into networks of its own machine, until it is closed.

    ::

        with NetworkConnector(server, token, "office", networks=["10.0.7.0/24"]):
            ...

    Agents reach what their allow lists name and their tokens permit of it; the gateway sees to
    that. The connector dials the very addresses that they connect to.

    Args:
        server: URL of the control plane; ``LATTICE_SERVER`` when ``None``.
        token: service token of the connector, or an admin's.
        name: of the connector, as it was added.
        networks: IPv4 networks or addresses. What it was added with and is not among these is
            not served.
        workspace_id: the token's workspace when left out.
        ttl: life from one renewal to the next.
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
        networks: Iterable[str],
        workspace_id: str | None = None,
        ttl: str | timedelta | None = None,
        verify: Path | str | bool | None = None,
        timeout: float | None = None,
    ) -> None:
        from lattice_sdk.terms import make_terms

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
            _Networks([_network(text) for text in networks]),
        )


class _Networks(Companion):
    """Serves networks on each new tunnel."""

    router = True

    def __init__(self, networks: list[str]) -> None:
        if not networks:
            raise ConfigurationError("no network to advertise", hint='Name one: "10.0.7.0/24"')
        self._networks = networks

    async def tunnel_up(self, life: Lifecycle, tunnel: Tunnel) -> None:
        """Have the engine take what arrives for them."""
        from lattice_engine import EngineError

        del life
        try:
            await tunnel.request("put_routes", {"names": [], "networks": self._networks})
        except EngineError as error:
            raise TunnelFailed(
                f"the networks are not served: {error.detail}", code=error.code
            ) from None


def _network(text: str) -> str:
    try:
        return str(ipaddress.IPv4Network(text))
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is no IPv4 network", hint="Write 10.0.7.0/24, without bits of a host"
        ) from None
