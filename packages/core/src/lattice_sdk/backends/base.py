"""What a tunnel backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lattice_sdk.errors import BackendUnavailable

if TYPE_CHECKING:
    from pydantic import SecretStr

    from lattice_sdk.identity import Identity
    from lattice_sdk.wgconfig import WireGuardConfig


@dataclass(frozen=True)
class Proxy:
    """The SOCKS5 and HTTP proxy of one tunnel, on loopback. The password is not in its ``repr``."""

    host: str
    port: int
    username: str
    password: SecretStr = field(repr=False)

    def url(self, scheme: str = "http") -> str:
        """With user name and password, and thereby a secret."""
        user, password = quote(self.username, safe=""), self.password.get_secret_value()
        return f"{scheme}://{user}:{quote(password, safe='')}@{self.host}:{self.port}"


@dataclass(frozen=True)
class Revoke:
    """The ``DELETE`` that ends the identity, for a part that outlives this process."""

    url: str
    token: SecretStr = field(repr=False)
    ca_file: str = ""


@dataclass(frozen=True)
class TunnelSpec:
    """What a tunnel is made of; a renewal makes a new one.

    Attributes:
        identity: whose tunnel it is.
        config: its WireGuard configuration, complete; ``None`` where the server gave none.
        expires_in: seconds until the tunnel must be down; asked when it is needed.
        revoke: what to do when this process dies; ``None`` where the identity shall outlive it.
        timeout: seconds until a tunnel that is not proven is given up.
        router: whether it takes flows for other addresses than its own.
    """

    identity: Identity
    config: WireGuardConfig | None
    expires_in: Callable[[], float]
    revoke: Revoke | None = None
    timeout: float = 5.0
    router: bool = False


class Tunnel(ABC):
    """A tunnel that is up.

    Attributes:
        phases: seconds of its making, by name.
        proxy: the way in, for backends that have one.
    """

    phases: Mapping[str, float]
    proxy: Proxy | None = None

    async def update(self, spec: TunnelSpec) -> None:
        """Take over a renewal, without a break in connections."""
        del spec

    async def request(self, method: str, *args: Any) -> Any:
        """Call the engine about this tunnel, by a method of its client.

        Raises:
            BackendUnavailable: the backend has no engine.
            EngineError: as the engine answers.
        """
        del method, args
        raise BackendUnavailable(
            "this needs a tunnel backend with an engine", hint="Use backend='userspace'"
        )

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called, in the loop, when the tunnel is gone by itself."""
        del callback

    @abstractmethod
    async def close(self) -> None:
        """Take it down. Again without effect."""


class TunnelBackend(ABC):
    """Makes tunnels. Its methods run in the SDK's background loop and must not block it.

    Attributes:
        name: what users write to choose it.
    """

    name: str

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine; ``None`` when it can."""

    async def prepare(self) -> None:
        """Get ready while the enrollment is under way. What it raises is raised there."""
        return

    @abstractmethod
    async def open(self, spec: TunnelSpec) -> Tunnel:
        """Bring a tunnel up, and prove it.

        Raises:
            LatticeError: it does not come up; nothing of it is left.
        """
