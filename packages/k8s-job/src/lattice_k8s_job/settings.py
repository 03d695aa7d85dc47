"""What the manifest tells the two containers, by environment."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from lattice_k8s_job import layout
from lattice_k8s_job.layout import Mode, Sidecar
from lattice_sdk.durations import parse_duration
from lattice_sdk.errors import ConfigurationError


def _destinations(value: object) -> object:
    return [_destination(text) for text in value.split()] if isinstance(value, str) else value


def _destination(text: str) -> dict[str, Any]:
    address, _, protocol = text.partition("/")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{text!r} is not HOST:PORT or HOST:PORT/udp")
    return {"to": host.strip("[]"), "port": int(port), "protocol": protocol or "tcp"}


def _list(value: object) -> object:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


class PodSettings(BaseSettings):
    """Settings of ``lattice-k8s``, each ``LATTICE_<NAME>``; the SDK's own are read by the SDK.

    Attributes:
        agent_name: what the identity is called; the pod's name.
        agent_type: what kind it is; the workload's name.
        preset: policy preset.
        allow: ``HOST:PORT`` separated by blanks, for the preset ``isolated``.
        ttl: life from one renewal to the next.
        mode: how the agent's containers reach the tunnel.
        state_dir: where the identity is between the containers and over their restarts.
        proxy_port: port of the proxy on the pod's loopback.
        proxy_password: what the proxy asks for, besides the user ``pod``.
        health_port: port of ``/healthz`` and ``/readyz``, on all addresses.
        sidecar: how the cluster runs the sidecar.
        containers: with how many other containers an ordinary sidecar ends; 0 for never by itself.
        grace: the pod's ``terminationGracePeriodSeconds``.
        node_addresses: of the node, separated by commas; probes come from there.
        probe_ports: TCP ports of the pod that are probed, separated by commas.
        allow_networks: networks that the pod reaches beside the tunnel, separated by commas.
    """

    model_config = SettingsConfigDict(
        env_prefix="LATTICE_", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    agent_name: str
    agent_type: str | None = None
    preset: str = "sandboxed"
    allow: Annotated[list[dict[str, Any]], NoDecode, BeforeValidator(_destinations)] = []
    ttl: Annotated[timedelta, BeforeValidator(_duration)] = timedelta(hours=1)
    mode: Mode = Mode.PROXY
    state_dir: Path = Path(layout.STATE_DIR)
    proxy_port: int = Field(layout.PROXY_PORT, gt=0, lt=65536)
    proxy_password: SecretStr | None = None
    health_port: int = Field(layout.HEALTH_PORT, gt=0, lt=65536)
    sidecar: Sidecar = Sidecar.NATIVE
    containers: int = Field(0, ge=0)
    grace: float = Field(30.0, ge=0)

    node_addresses: Annotated[list[str], NoDecode, BeforeValidator(_list)] = []
    probe_ports: str = ""
    allow_networks: str = ""

    def agent(self, **changes: Any) -> dict[str, Any]:
        """Arguments of :class:`lattice_sdk.LatticeAgent`; the same in both containers."""
        return {
            "agent_name": self.agent_name,
            "agent_type": self.agent_type,
            "policy_preset": self.preset,
            "allow": self.allow,
            "ttl": self.ttl,
            "state_dir": self.state_dir,
            **changes,
        }


def load() -> PodSettings:
    """The settings as the environment has them.

    Raises:
        ConfigurationError: one is missing or wrong.
    """
    try:
        return PodSettings()
    except ValidationError as error:
        wrong = "; ".join(
            f"LATTICE_{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}"
            for item in error.errors(include_input=False, include_context=False, include_url=False)
        )
        raise ConfigurationError(
            f"the container's environment is wrong: {wrong}",
            hint="Make the manifest anew with `lattice k8s inject`",
        ) from None
