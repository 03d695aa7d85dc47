"""What the contract suite asks of an agent, asked of a pod.

The work of the suite runs in the tests' process. Its sockets are made in the pod's network
namespace, and it finds the tunnel as a program of the agent's container does: in mode proxy by the
injected environment, in mode interface by the container's names and the kernel's routes.
"""

from __future__ import annotations

import json
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
from pydantic import SecretStr

from lattice_sdk import tunnelled
from lattice_sdk.backends import Proxy
from lattice_sdk.errors import DestinationUnreachable, IdentityExpired, Refused
from lattice_sdk.testing.leftovers import descendants
from lattice_sdk.testing.world import World
from support.jobs import peer_of
from support.node import inside
from support.pods import Pod


class PodAgent(ABC):
    """The part of :class:`lattice_sdk.LatticeAgent` that the contract uses."""

    def __init__(self, pod: Pod, world: World) -> None:
        self.pod, self._world = pod, world
        peer = peer_of(world, pod)
        self.peer_id: str = peer["peerId"]
        self.overlay_ip: str = peer["overlayIP"].partition("/")[0]
        (self.engine_pid,) = [
            pid for pid in descendants(pod.pid("lattice-sidecar")) if _is_engine(pid)
        ]

    @property
    def expires_at(self) -> datetime:
        return datetime.fromisoformat(peer_of(self._world, self.pod)["expiresAt"])

    @property
    def remaining(self) -> float:
        return self.expires_at.timestamp() - datetime.now().timestamp()

    @property
    def state(self) -> str:
        answer = self.pod.probe("/readyz")
        return str(answer.json()["state"]) if answer is not None else "unknown"

    def http_client(self, **options: Any) -> httpx.Client:
        return httpx.Client(
            **options,
            transport=self._transport(),
            trust_env=False,
            # The proxy keeps connections to services for the next request, longer than a test.
            headers={"Connection": "close"},
        )

    @abstractmethod
    def _transport(self) -> httpx.BaseTransport: ...

    @abstractmethod
    def connect(self, host: str, port: int, timeout: float = 30.0) -> socket.socket: ...


class ProxyAgent(PodAgent):
    """In mode proxy."""

    def proxy_env(self) -> dict[str, str]:
        return {
            name: value
            for name, value in self.pod.environment("agent").items()
            if name.upper().endswith("_PROXY")
        }

    def _transport(self) -> httpx.BaseTransport:
        inner = httpx.HTTPTransport(proxy=self.proxy_env()["HTTP_PROXY"])
        return _FromInside(self.pod.infra_pid, inner)

    def connect(self, host: str, port: int, timeout: float = 30.0) -> socket.socket:
        url = httpx.URL(self.proxy_env()["HTTP_PROXY"])
        proxy = Proxy(url.host, url.port or 80, url.username, SecretStr(url.password))
        stream = inside(
            self.pod.infra_pid,
            lambda: socket.create_connection((proxy.host, proxy.port), timeout),
        )
        try:
            stream.sendall(tunnelled.connect_request(proxy, host, port))
            status, length = tunnelled.read_head(tunnelled._read_head(stream))
            if status == 200:
                stream.settimeout(None)
                return stream
            body = b""
            while len(body) < length and (chunk := stream.recv(65536)):
                body += chunk
            raise _refusal(status, json.loads(body), self.peer_id)
        except BaseException:
            stream.close()
            raise


# What any program of the container finds for a name.
RESOLVE = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))"


class InterfaceAgent(PodAgent):
    """In mode interface: plain sockets, which are refused by the kernel, without a sentence."""

    def _transport(self) -> httpx.BaseTransport:
        return _FromInside(self.pod.infra_pid, httpx.HTTPTransport(), self._resolve)

    def connect(self, host: str, port: int, timeout: float = 30.0) -> socket.socket:
        try:
            address = self._resolve(host)
            stream = inside(
                self.pod.infra_pid, lambda: socket.create_connection((address, port), timeout)
            )
        except OSError as error:
            answer = self.pod.probe("/readyz")
            told = answer.json() if answer is not None else {}
            if told.get("state") == "expired":
                raise IdentityExpired(told["detail"], peer_id=self.peer_id) from None
            if isinstance(error, TimeoutError):
                raise DestinationUnreachable(f"{host}:{port} does not answer") from None
            raise Refused(f"{host}:{port} was refused: {error}", peer_id=self.peer_id) from None
        stream.settimeout(None)
        return stream

    def _resolve(self, host: str) -> str:
        command = ("/usr/bin/python3", "-c", RESOLVE, host)
        found = self.pod.execute("agent", *command, check=False).strip()
        if not found:
            raise OSError(f"{host} has no address in the pod")
        return found


class _FromInside(httpx.BaseTransport):
    def __init__(
        self,
        pid: int,
        inner: httpx.HTTPTransport,
        resolve: Callable[[str], str] = lambda host: host,
    ) -> None:
        self._pid, self._inner, self._resolve = pid, inner, resolve

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host=self._resolve(request.url.host))
        return inside(self._pid, lambda: self._inner.handle_request(request))

    def close(self) -> None:
        self._inner.close()


def _refusal(status: int, problem: dict[str, Any], peer: str) -> Exception:
    detail = str(problem.get("detail"))
    if status == 403:
        return Refused(detail, peer_id=peer)
    if problem.get("code") == "identity_expired":
        return IdentityExpired(detail, peer_id=peer)
    return DestinationUnreachable(detail, peer_id=peer)


def _is_engine(pid: int) -> bool:
    with open(f"/proc/{pid}/comm") as file:
        return file.read().startswith("lattice-engine")
