"""A tool service's way into the overlay: its address, and forwards to where it really listens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lattice_sdk.agent import Face
from lattice_sdk.ingress import Forwards, forward

if TYPE_CHECKING:
    from datetime import timedelta

    from pydantic import SecretStr


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
