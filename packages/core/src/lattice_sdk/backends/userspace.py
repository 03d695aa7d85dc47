"""``userspace``: WireGuard in the engine, reached through its loopback proxy. Needs nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import SecretStr

from lattice_engine import EngineError, engine_path
from lattice_sdk import enginebody, network, runtime
from lattice_sdk.backends.base import Isolation, Proxy, Tunnel, TunnelBackend, TunnelSpec
from lattice_sdk.enginehost import EngineHost, engine_failed
from lattice_sdk.errors import LatticeError, TunnelFailed
from lattice_sdk.sandbox.facts import facts_of
from lattice_sdk.sandbox.home import Home
from lattice_sdk.sandbox.spec import PROXY, Spec

log = logging.getLogger("lattice.tunnel")

_HINTS = {
    "handshake_timeout": "Check that UDP to the gateway's endpoint is let through, and that its "
    "advertised address is reachable from here",
    "probe_timeout": "The gateway's handshake works but it does not answer: look at its log",
    "port_in_use": "End what listens there, or name another port",
}
_GONE = ("tunnel_not_found", "tunnel_lost", "engine_unreachable", "engine_closed")


class Userspace(TunnelBackend):
    """Works without root, TUN or capability, on any system.

    Args:
        proxy: where the proxy listens and what it asks for, when others must know it beforehand;
            any port of loopback and a new secret when left out.
    """

    name = "userspace"
    isolation: Isolation = "proxy"

    def __init__(self, proxy: Proxy | None = None) -> None:
        self._proxy = proxy

    def unavailable(self) -> str | None:
        """When there is no engine binary for this machine."""
        try:
            engine_path()
        except EngineError as error:
            return error.detail
        return None

    async def prepare(self) -> None:
        """Start the engine, which takes as long as an enrollment."""
        await runtime.current().engine.process()

    async def open(self, spec: TunnelSpec) -> Tunnel:
        """Make the tunnel in the engine of this process, which proves it."""
        check_config(spec)
        proxy = self._proxy or any_proxy(spec)
        tunnel = await runtime.finish(self._open(runtime.current().engine, spec, proxy))
        if isinstance(tunnel, UserspaceTunnel):
            tunnel.config = spec.config
        return tunnel

    async def _open(self, engine: EngineHost, spec: TunnelSpec, wanted: Proxy) -> Tunnel:
        answer, proxy = await open_tunnel(engine, spec, wanted)
        return UserspaceTunnel(engine, spec.identity.peer_id, proxy, answer.get("phases") or {})


def check_config(spec: TunnelSpec) -> None:
    """There must be something to make a tunnel of.

    Raises:
        TunnelFailed: there is not.
    """
    if spec.config is None:
        raise TunnelFailed(
            "the control plane handed out no WireGuard config, so there is no tunnel to make",
            peer_id=spec.identity.peer_id,
            hint="Use backend='none' with this control plane",
        )


def any_proxy(spec: TunnelSpec) -> Proxy:
    """A proxy on any port of loopback, with a new secret."""
    return Proxy("127.0.0.1", 0, spec.identity.peer_id, SecretStr(secrets.token_urlsafe(32)))


async def open_tunnel(
    engine: EngineHost, spec: TunnelSpec, wanted: Proxy, where: dict[str, Any] | None = None
) -> tuple[dict[str, Any], Proxy]:
    """Have the engine make a tunnel.

    Args:
        engine: of this process.
        spec: of the tunnel.
        wanted: its proxy.
        where: what it ends in, the ``network`` of the engine's API; a netstack when left out.

    Returns:
        The engine's answer, and the proxy as it has become.

    Raises:
        TunnelFailed: it does not come up; ``code`` is the engine's.
        EngineFailed: the engine does not answer.
    """
    peer_id = spec.identity.peer_id
    body = _body(spec, wanted) | ({"network": where} if where is not None else {})
    patience = enginebody.patience(spec.timeout, namespace=where is not None)
    try:
        try:
            answer = await engine.request("put_tunnel", peer_id, body, timeout=patience)
        except EngineError as error:
            if error.code != "tunnel_exists":
                raise
            # Left from an attempt whose answer was lost.
            await engine.request("delete_tunnel", peer_id)
            answer = await engine.request("put_tunnel", peer_id, body, timeout=patience)
    except EngineError as error:
        if error.code.startswith("engine_"):
            raise engine_failed(error) from None
        raise TunnelFailed(
            f"the tunnel did not come up: {error.detail}",
            code=error.code,
            peer_id=peer_id,
            hint=_HINTS.get(error.code),
        ) from None
    made = answer["proxy"]
    return answer, replace(wanted, host=made["host"], port=int(made["port"]))


class UserspaceTunnel(Tunnel):
    """A tunnel in the engine."""

    isolation: Isolation = "proxy"
    rotates = True

    def __init__(
        self, engine: EngineHost, peer_id: str, proxy: Proxy, phases: dict[str, float]
    ) -> None:
        self.proxy = proxy
        self.phases = phases
        self._engine, self._peer_id = engine, peer_id
        self._engine_pid = engine.pid
        self._lost: Callable[[], None] | None = None
        self._silent: Callable[[bool], None] | None = None
        self._asking: asyncio.Future[None] | None = None
        self._closed = False
        self._sockets: str | None = None
        self._directory = engine.directory
        self._facts: dict[str, Any] = {}
        self._home: Home | None = None
        self._making = threading.Lock()
        network.own_proxy(proxy.host, proxy.port, known=True)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """When the engine dies, tells it, or says that it has no such tunnel."""
        self._lost = callback
        self._engine.on_death(callback)
        self._engine.events.add(self._peer_id, self._heard)

    def on_silent(self, callback: Callable[[bool], None]) -> None:
        """See :meth:`Tunnel.on_silent`."""
        self._silent = callback

    def _heard(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "lost":
                self._asking = asyncio.ensure_future(self._ask_whether_lost())
            case "silent" | "recovered" as kind if self._silent is not None:
                self._silent(kind == "silent")

    async def _ask_whether_lost(self) -> None:
        # What was told may be about a tunnel of the same name that was there before.
        try:
            lost = (await self.request("get_tunnel"))["state"] == "lost"
        except EngineError as error:
            lost = error.code in _GONE
        if lost and not self._closed and self._lost is not None:
            self._lost()

    def new_socket(self) -> socket.socket:
        """See :meth:`Tunnel.new_socket`."""
        from lattice_engine import namespace_socket

        if self._sockets is None:
            return super().new_socket()
        try:
            return namespace_socket(self._sockets)
        except EngineError as error:
            raise OSError(error.detail) from None

    def launcher_spec(self) -> str:
        """See :meth:`Tunnel.launcher_spec`."""
        with self._making:
            if self._home is None:
                directory = os.path.join(self._directory, f"programs-{secrets.token_hex(4)}")
                self._home = Home(directory, self._told(), self._facts)
            return self._home.spec

    def _told(self) -> Spec:
        """What the launcher is told: here, to let programs take the proxy."""
        assert self.proxy is not None  # noqa: S101 - set in __init__, never cleared
        told = Spec(PROXY)
        told.variables = self.proxy.environment()
        return told

    async def end_programs(self) -> None:
        """See :meth:`Tunnel.end_programs`."""
        if self._home is not None:
            await runtime.current().call(self._home.close)

    async def update(self, spec: TunnelSpec) -> None:
        """New deadline, key, revoke, names, policy and endpoint; connections stay."""
        body = _changes(spec)
        body["interface"] = {"privateKey": spec.identity.private_key.get_secret_value()}
        former, config = self.config, spec.config
        moved = former is not None and config is not None and former.endpoint != config.endpoint
        if moved and config is not None:
            log.info("%s: its gateway is at %s now", self._peer_id, config.endpoint)
            body["peer"] = {"endpoint": config.endpoint}
        try:
            await self.request("patch_tunnel", body)
        except EngineError as error:
            if error.code in _GONE and self._lost is not None:
                self._lost()
                return
            raise engine_failed(error) from None
        self.config = config
        replaced = former and config and former.public_key != config.public_key
        if replaced and self._lost is not None:
            log.warning("%s: its gateway has another key; the tunnel is made anew", self._peer_id)
            self._lost()

    async def request(self, method: str, *args: Any) -> Any:
        """Call the engine about this tunnel.

        Raises:
            EngineError: as the engine answers; ``engine_closed`` when it has ended.
        """
        return await self._engine.request(method, self._peer_id, *args, pid=self._engine_pid)

    async def close(self) -> None:
        """Take it down; without revoke, which is the lifecycle's business."""
        if self._closed:
            return
        self.let_go()
        try:
            await self.request("delete_tunnel")
        except (EngineError, LatticeError) as error:
            # An engine that cannot be asked is dead, or about to be ended; so is the tunnel.
            log.debug("%s: tunnel not taken down by the engine: %s", self._peer_id, error)

    async def give_way(self, successor: Tunnel) -> None:
        """See :meth:`Tunnel.give_way`; in one engine the successor may have the same name."""
        mine = (self._engine_pid, self._peer_id)
        if not isinstance(successor, UserspaceTunnel) or mine != (
            successor._engine_pid,
            successor._peer_id,
        ):
            await self.close()
        elif not self._closed:
            self.let_go()

    def let_go(self) -> None:
        """Give up what this process holds of it."""
        self._closed = True
        if self._lost is not None:
            self._engine.forget(self._lost)
        self._engine.events.remove(self._peer_id, self._heard)
        assert self.proxy is not None  # noqa: S101 - set in __init__, never cleared
        network.own_proxy(self.proxy.host, self.proxy.port, known=False)


def _changes(spec: TunnelSpec) -> dict[str, Any]:
    """The body of a ``PATCH``: what a renewal may change."""
    left, revoke, names = spec.expires_in(), spec.revoke, spec.names
    body = enginebody.changes(
        facts_of(spec.identity, left),
        left,
        enginebody.revocation(revoke.url, revoke.token.get_secret_value(), revoke.ca_file)
        if revoke is not None
        else None,
    )
    if names is not None:
        body["names"] = {
            "patterns": list(names.patterns),
            "url": names.url,
            "headers": {"Authorization": f"Bearer {names.token.get_secret_value()}"},
            "caFile": names.ca_file,
        }
    return body


def _body(spec: TunnelSpec, proxy: Proxy) -> dict[str, Any]:
    assert spec.config is not None  # noqa: S101 - looked at in open()
    body = _changes(spec) | enginebody.wireguard(spec.config.render().get_secret_value(), "")
    body["proxy"] = {
        "username": proxy.username,
        "password": proxy.password.get_secret_value(),
        "port": proxy.port,
    }
    if spec.router:
        body["router"] = True
    return body | enginebody.probe(facts_of(spec.identity, 0), spec.timeout)
