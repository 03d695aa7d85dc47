"""The pod's way into the tunnel, by mode."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from http import HTTPStatus

from lattice_k8s_job import answers, layout
from lattice_k8s_job.layout import Mode
from lattice_k8s_job.settings import PodSettings
from lattice_sdk.backends import Proxy, TunnelBackend
from lattice_sdk.backends.userspace import Userspace
from lattice_sdk.errors import ConfigurationError


class Network(ABC):
    """How the agent's containers reach the tunnel.

    Attributes:
        backend: makes the tunnel.
    """

    backend: TunnelBackend

    @abstractmethod
    async def reachable(self) -> bool:
        """Whether the agent's containers find the tunnel."""

    @abstractmethod
    async def say(self, sentence: str, peer_id: str) -> None:
        """Tell whoever asks for the network why there is none. Returns when cancelled."""


class _PodProxy(Userspace):
    name = "pod"


class ProxyNetwork(Network):
    """The engine's proxy on a port of the pod's loopback that the manifest knows.

    Raises:
        ConfigurationError: the manifest gives no password.
    """

    def __init__(self, settings: PodSettings) -> None:
        if settings.proxy_password is None:
            raise ConfigurationError(
                "the proxy has no password: LATTICE_PROXY_PASSWORD is not set",
                hint="Make the manifest anew with `lattice k8s inject`",
            )
        self.port = settings.proxy_port
        self.backend = _PodProxy(
            Proxy("127.0.0.1", self.port, layout.PROXY_USER, settings.proxy_password)
        )

    async def reachable(self) -> bool:
        """Whether the proxy takes connections."""
        try:
            async with asyncio.timeout(1):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return True

    async def say(self, sentence: str, peer_id: str) -> None:
        """In the place of the proxy."""
        problem = {
            "type": "about:blank",
            "title": "Bad Gateway",
            "status": HTTPStatus.BAD_GATEWAY,
            "code": "identity_expired",
            "detail": sentence,
            "peerId": peer_id,
        }

        async def answer(_method: str, _target: str) -> answers.Answer:
            return HTTPStatus.BAD_GATEWAY, problem

        async with await answers.serve(answers.loopback(self.port), answer) as server:
            await server.serve_forever()


def network_of(settings: PodSettings) -> Network:
    """The network of the mode."""
    if settings.mode is Mode.PROXY:
        return ProxyNetwork(settings)
    raise ConfigurationError(f"the mode {settings.mode} is not built yet")
