"""``netns``: programs of the agent in a network namespace with nothing but the tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

from lattice_engine import EngineError
from lattice_sdk import runtime
from lattice_sdk.backends.base import Isolation, Proxy, Tunnel, TunnelSpec
from lattice_sdk.backends.userspace import Userspace, UserspaceTunnel, open_tunnel
from lattice_sdk.enginehost import EngineHost, engine_failed
from lattice_sdk.errors import BackendUnavailable, TunnelFailed
from lattice_sdk.sandbox import machine
from lattice_sdk.sandbox.facts import facts_of
from lattice_sdk.sandbox.home import Home, namespace_spec
from lattice_sdk.sandbox.spec import Spec

# Of the engine: what it says of the machine, and not of this tunnel.
INCAPABLE = frozenset(
    {"userns_forbidden", "namespaces_exhausted", "tun_failed", "device_failed", "keeper_failed"}
)


class Netns(Userspace):
    """Linux alone, with user namespaces. Needs no root and no capability."""

    name = "netns"
    isolation: Isolation = "namespace"

    def unavailable(self) -> str | None:
        """When this machine is known to forbid namespaces; whether it allows them is found out."""
        return super().unavailable() or machine.forbids()

    async def prepare(self) -> None:
        """Start engine and keeper, which take as long as an enrollment, and resolve doubts."""
        _, why = await asyncio.gather(
            _start_keeper(runtime.current().engine), runtime.current().once(machine.doubts)
        )
        if why is not None:
            raise BackendUnavailable(why, code="sandbox_forbidden")

    async def _open(self, engine: EngineHost, spec: TunnelSpec, wanted: Proxy) -> Tunnel:
        try:
            answer, proxy = await open_tunnel(engine, spec, wanted, {"kind": "namespace"})
        except TunnelFailed as error:
            if error.code in INCAPABLE:
                raise BackendUnavailable(error.message, code=error.code) from None
            raise
        tunnel = NamespaceTunnel(engine, spec.identity.peer_id, proxy, answer)
        try:
            await runtime.current().call(tunnel.settle, spec)
        except OSError as error:
            await tunnel.close()
            raise TunnelFailed(
                f"the files of the sandbox cannot be made: {error}", peer_id=spec.identity.peer_id
            ) from None
        return tunnel


async def _start_keeper(engine: EngineHost) -> None:
    try:
        await engine.request("start_keeper")
    except EngineError as error:
        if error.code in INCAPABLE:
            raise BackendUnavailable(error.detail, code=error.code) from None
        raise engine_failed(error) from None


class NamespaceTunnel(UserspaceTunnel):
    """A tunnel whose other end is in a network namespace of its own."""

    isolation: Isolation = "namespace"
    has_sockets = True

    def __init__(
        self, engine: EngineHost, peer_id: str, proxy: Proxy, answer: dict[str, Any]
    ) -> None:
        super().__init__(engine, peer_id, proxy, answer.get("phases") or {})
        self._sockets = str(answer["network"]["sockets"])
        self._answer = answer
        self._secret_files: tuple[str, ...] = ()
        self._watched = -1

    def settle(self, spec: TunnelSpec, home: Home | None = None) -> None:
        """Make what the launcher needs.

        Args:
            spec: of the tunnel.
            home: where that has been made already.

        Raises:
            OSError: the files cannot be written.
        """
        self._secret_files = spec.secret_files
        self._facts = facts_of(spec.identity, spec.expires_in())
        self._home = home
        self.launcher_spec()

    def _told(self) -> Spec:
        return namespace_spec(self._answer, self._directory, self._secret_files)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Also when the namespaces' keeper ends alone."""
        super().on_lost(callback)
        with contextlib.suppress(OSError):
            self._watched = os.pidfd_open(self._answer["network"]["namespace"]["pid"])
            asyncio.get_running_loop().add_reader(self._watched, self._keeper_ended)

    async def update(self, spec: TunnelSpec) -> None:
        """New names for programs that run, too."""
        await super().update(spec)
        if self._home is not None:
            facts = facts_of(spec.identity, spec.expires_in())
            await runtime.finish(runtime.current().call(self._home.update, facts))

    def let_go(self) -> None:
        """Also of the keeper."""
        self._forget_keeper()
        super().let_go()

    def _keeper_ended(self) -> None:
        self._forget_keeper()
        if self._lost is not None:
            self._lost()

    def _forget_keeper(self) -> None:
        descriptor, self._watched = self._watched, -1
        if descriptor >= 0:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
