"""The pod's way into the tunnel, by mode."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from http import HTTPStatus
from typing import TYPE_CHECKING

from lattice_k8s_job import answers, layout
from lattice_k8s_job.hosts import HostsFile
from lattice_k8s_job.layout import Mode
from lattice_k8s_job.settings import PodSettings
from lattice_sdk.backends import Proxy, Tunnel, TunnelBackend, TunnelSpec
from lattice_sdk.backends.interface import INCAPABLE, Interface, InterfaceTunnel
from lattice_sdk.backends.userspace import Userspace, open_tunnel
from lattice_sdk.errors import ConfigurationError, TunnelFailed

if TYPE_CHECKING:
    from lattice_sdk.enginehost import EngineHost
    from lattice_sdk.identity import Identity

DEVICES = ("tun", "packet")


class Network(ABC):
    """How the agent's containers reach the tunnel.

    Attributes:
        backend: makes the tunnel.
    """

    backend: TunnelBackend

    @abstractmethod
    async def reachable(self) -> bool:
        """Whether the agent's containers find the tunnel."""

    def tell(self, identity: Identity) -> None:
        """The identity as it is now."""
        del identity

    async def keep(self) -> None:
        """Look after what has to be looked after. Returns when cancelled."""
        await asyncio.Event().wait()

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


class _PodInterface(Interface):
    name = "pod"

    async def _open(self, engine: EngineHost, spec: TunnelSpec, wanted: Proxy) -> Tunnel:
        # Not the kernel's own WireGuard: its packets have no process, so the pod's lock, which goes
        # by the group of the sending process, would hold them.
        for device in DEVICES:
            where = {"kind": "interface", "interface": layout.INTERFACE, "device": device}
            try:
                answer, proxy = await open_tunnel(engine, spec, wanted, where)
            except TunnelFailed as error:
                if error.code in INCAPABLE and device != DEVICES[-1]:
                    continue
                raise
            return InterfaceTunnel(engine, spec.identity.peer_id, proxy, answer)
        raise AssertionError("there is a device to try")


class InterfaceNetwork(Network):
    """An interface of the pod, beside which the lock lets nothing pass."""

    def __init__(self, hosts: HostsFile | None = None) -> None:
        self.backend = _PodInterface()
        self._hosts = hosts or HostsFile()

    def tell(self, identity: Identity) -> None:
        """Take over the names that the identity reaches."""
        self._hosts.names = identity.hosts

    async def keep(self) -> None:
        """The names in the hosts file."""
        await self._hosts.keep()

    async def reachable(self) -> bool:
        """Whether interface and names are there."""
        names = {name for _, name in socket.if_nameindex()}
        return layout.INTERFACE in names and self._hosts.there()

    async def say(self, sentence: str, peer_id: str) -> None:
        """Nothing listens that could: what the agent tries is refused by the lock."""
        del sentence, peer_id
        await asyncio.Event().wait()


def network_of(settings: PodSettings) -> Network:
    """The network of the mode."""
    return ProxyNetwork(settings) if settings.mode is Mode.PROXY else InterfaceNetwork()
