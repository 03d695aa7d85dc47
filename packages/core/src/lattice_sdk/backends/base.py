"""What a tunnel backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from lattice_sdk.errors import BackendUnavailable

if TYPE_CHECKING:
    import socket

    from pydantic import SecretStr

    from lattice_sdk.identity import Identity
    from lattice_sdk.wgconfig import WireGuardConfig


# For a program that talks to itself; the tunnel does not lead there anyway.
NO_PROXY = "localhost,127.0.0.1,::1"
# What bounds the network of an agent's programs: a network namespace of their own; the network
# namespace that they share with this process and the tunnel's interface; nothing but the proxy's
# refusal to carry more, which a program may go around; nothing.
Isolation = Literal["namespace", "interface", "proxy", "none"]


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

    def environment(self) -> dict[str, str]:
        """For a program that honours such variables, in both spellings; holds the secret."""
        values = {
            "HTTP_PROXY": self.url(),
            "HTTPS_PROXY": self.url(),
            # socks5h: the proxy resolves the names, the program's resolver never sees them.
            "ALL_PROXY": self.url("socks5h"),
            "NO_PROXY": NO_PROXY,
        }
        return values | {name.lower(): value for name, value in values.items()}


@dataclass(frozen=True)
class Revoke:
    """The ``DELETE`` that ends the identity, for a part that outlives this process."""

    url: str
    token: SecretStr = field(repr=False)
    ca_file: str = ""


@dataclass(frozen=True)
class NameSource:
    """Where host names of patterns get their overlay addresses, for a part that is asked for them.

    Attributes:
        patterns: ``*.example.org``: what is below.
        url: to ``POST`` a name to, with the token.
    """

    patterns: tuple[str, ...]
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
        names: where names of patterns come from; ``None`` where there are no patterns.
        timeout: seconds until a tunnel that is not proven is given up.
        router: whether it takes flows for other addresses than its own.
        secret_files: where credentials are kept, which programs are not to see.
    """

    identity: Identity
    config: WireGuardConfig | None
    expires_in: Callable[[], float]
    revoke: Revoke | None = None
    names: NameSource | None = None
    timeout: float = 5.0
    router: bool = False
    secret_files: tuple[str, ...] = ()


class Tunnel(ABC):
    """A tunnel that is up.

    Attributes:
        phases: seconds of its making, by name.
        proxy: the way in, for backends that have one.
        isolation: what bounds the network of programs that are started with it.
        has_sockets: whether :meth:`new_socket` works.
        rotates: whether :meth:`update` takes up another private key.
        config: what it is made of, as the last renewal has it; ``None`` where it is not known.
    """

    phases: Mapping[str, float]
    proxy: Proxy | None = None
    isolation: Isolation = "none"
    has_sockets = False
    rotates = False
    config: WireGuardConfig | None = None

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

    def new_socket(self) -> socket.socket:
        """An unconnected TCP socket of the tunnel's network. Any thread.

        Raises:
            OSError: that network has gone, or there is none of its own.
        """
        raise OSError(f"a tunnel of the kind {self.isolation} has no network of its own")

    def launcher_spec(self) -> str:
        """Path of what the launcher needs to run programs with this tunnel. Any thread.

        Raises:
            BackendUnavailable: the backend runs none.
        """
        raise BackendUnavailable(
            "this tunnel backend carries no traffic of programs",
            hint="Use backend='netns' or backend='userspace'",
        )

    async def end_programs(self) -> None:
        """Kill what was started with it, and wait until it is gone. Again without effect."""
        return

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called, in the loop, when the tunnel is gone by itself."""
        del callback

    def on_silent(self, callback: Callable[[bool], None]) -> None:
        """Have ``callback`` called, in the loop, when the gateway does not answer any more.

        With ``False`` when it answers again.
        """
        del callback

    @abstractmethod
    async def close(self) -> None:
        """Take it down. Again without effect."""

    async def give_way(self, successor: Tunnel) -> None:
        """Take it down where another has come up in its place, which stays."""
        del successor
        await self.close()


class TunnelBackend(ABC):
    """Makes tunnels. Its methods run in the SDK's background loop and must not block it.

    Attributes:
        name: what users write to choose it.
        isolation: of its tunnels.
        by_name_only: whether it is left out where no backend is named.
    """

    name: str
    isolation: Isolation = "none"
    by_name_only = False

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine; ``None`` when it can."""

    async def prepare(self) -> None:
        """Get ready while the enrollment is under way. What it raises is raised there.

        Raises:
            BackendUnavailable: it cannot serve on this machine after all. So may :meth:`open`; the
                next backend is taken then, where none is named.
        """
        return

    @abstractmethod
    async def open(self, spec: TunnelSpec) -> Tunnel:
        """Bring a tunnel up, and prove it.

        Raises:
            LatticeError: it does not come up; nothing of it is left.
        """
