"""What the pods are given."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lattice_k8s_job import layout
from lattice_k8s_job.layout import Mode, Sidecar
from lattice_sdk.durations import parse_duration
from lattice_sdk.errors import ConfigurationError

IMAGE = "lattice-k8s-job:0.1.0"
TOKEN_SECRET = "lattice-token"  # noqa: S105 - an object's name
ANNOTATIONS = "lattice.io/"
_DESTINATION = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):\d{1,5}(/(tcp|udp))?")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How pods are given their identity.

    Attributes:
        server: URL of the control plane, as pods reach it.
        image: of the two containers.
        token_secret: ``NAME`` or ``NAME:KEY`` of the Secret with the workspace token.
        token_audience: audience of a service-account token, which is then taken instead.
        mode: how the agent's containers reach the tunnel.
        sidecar: how the cluster runs the sidecar.
        workspace: the token's workspace when left out.
        preset: policy preset.
        allow: ``HOST:PORT``, for the preset ``isolated``.
        ttl: life from one renewal to the next.
        ca: ``NAME`` or ``NAME:KEY`` of the ConfigMap with the control plane's authorities.
        containers: names of the containers that are given the network; all when left out.
        no_proxy: hosts that are reached past the proxy, besides loopback.
        proxy_port: on the pod's loopback.
        health_port: of the sidecar's probes.
        allow_networks: CIDRs that pods reach beside the tunnel in mode interface.
    """

    server: str
    image: str = IMAGE
    token_secret: str = TOKEN_SECRET
    token_audience: str | None = None
    mode: Mode = Mode.PROXY
    sidecar: Sidecar = Sidecar.NATIVE
    workspace: str | None = None
    preset: str = "sandboxed"
    allow: tuple[str, ...] = ()
    ttl: str = "1h"
    ca: str | None = None
    containers: tuple[str, ...] = ()
    no_proxy: tuple[str, ...] = ()
    proxy_port: int = layout.PROXY_PORT
    health_port: int = layout.HEALTH_PORT
    allow_networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", Mode(self.mode))
        object.__setattr__(self, "sidecar", Sidecar(self.sidecar))
        try:
            parse_duration(self.ttl)
        except ValueError as error:
            raise ConfigurationError(f"ttl: {error}") from None
        for text in self.allow_networks:
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                raise ConfigurationError(
                    f"allow-network: {error}", hint="For example: --allow-network 10.20.0.0/16"
                ) from None
        if self.allow_networks and self.mode is not Mode.INTERFACE:
            raise ConfigurationError(
                "in mode proxy the pod's network is not locked, so nothing is to be allowed",
                hint="Use --no-proxy for what is reached past the proxy, or --mode interface",
            )
        if self.mode is Mode.INTERFACE and (self.containers or self.no_proxy):
            raise ConfigurationError(
                "in mode interface all containers of the pod have its one network, and no proxy",
                hint="Leave --container and --no-proxy out; --allow-network names networks that "
                "are reached beside the tunnel",
            )
        for text in self.allow:
            if not _DESTINATION.fullmatch(text):
                raise ConfigurationError(
                    f"allow: {text!r} is not HOST:PORT or HOST:PORT/udp",
                    hint="For example: --allow 10.96.0.7:443",
                )

    def with_annotations(self, annotations: Mapping[str, Any]) -> Options:
        """These options with what a manifest says of itself.

        Raises:
            ConfigurationError: it says something that is not understood.
        """
        said = {
            str(name).removeprefix(ANNOTATIONS): str(value)
            for name, value in annotations.items()
            if str(name).startswith(ANNOTATIONS)
        }
        changes: dict[str, Any] = {name: said[name] for name in ("preset", "ttl") if name in said}
        if "allow" in said:
            changes["allow"] = tuple(said["allow"].split())
        return replace(self, **changes) if changes else self


def wanted(annotations: Mapping[str, Any]) -> bool:
    """Whether a manifest wants to be injected: it may say ``lattice.io/inject: "false"``."""
    return str(annotations.get(f"{ANNOTATIONS}inject", "true")).lower() != "false"


def name_and_key(text: str, key: str) -> tuple[str, str]:
    """Parts of ``NAME:KEY``; ``key`` where only the name is given."""
    name, _, given = text.partition(":")
    return name, given or key
