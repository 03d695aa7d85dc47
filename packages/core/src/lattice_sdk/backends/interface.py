"""``interface``: the tunnel as an interface of the network namespace that this process is in."""

from __future__ import annotations

from typing import Any

from lattice_sdk.backends.base import Isolation, Proxy, Tunnel, TunnelSpec
from lattice_sdk.backends.userspace import Userspace, UserspaceTunnel, open_tunnel
from lattice_sdk.enginehost import EngineHost
from lattice_sdk.errors import BackendUnavailable, TunnelFailed
from lattice_sdk.sandbox.spec import PLAIN, Spec
from lattice_sdk.sandbox.trouble import field

CAP_NET_ADMIN = 12  # linux/capability.h
INCAPABLE = frozenset({"net_admin_missing", "tun_failed", "device_failed", "interface_exists"})


class Interface(Userspace):
    """For a container or a pod's sidecar with CAP_NET_ADMIN. Only where it is asked for.

    Every program of the network namespace can use it, beside what else there is: it is the pod, or
    who set the container up, that bounds their network.
    """

    name = "interface"
    isolation: Isolation = "interface"
    by_name_only = True

    def unavailable(self) -> str | None:
        """Without CAP_NET_ADMIN."""
        if (why := super().unavailable()) is not None:
            return why
        effective = int(field("CapEff") or "0", 16)
        if not effective >> CAP_NET_ADMIN & 1:
            return "this process does not have CAP_NET_ADMIN"
        return None

    async def _open(self, engine: EngineHost, spec: TunnelSpec, wanted: Proxy) -> Tunnel:
        try:
            answer, proxy = await open_tunnel(engine, spec, wanted, {"kind": "interface"})
        except TunnelFailed as error:
            if error.code in INCAPABLE:
                raise BackendUnavailable(error.message, code=error.code) from None
            raise
        return InterfaceTunnel(engine, spec.identity.peer_id, proxy, answer)


class InterfaceTunnel(UserspaceTunnel):
    """A tunnel that ends in an interface."""

    isolation: Isolation = "interface"
    has_sockets = True

    def __init__(
        self, engine: EngineHost, peer_id: str, proxy: Proxy, answer: dict[str, Any]
    ) -> None:
        super().__init__(engine, peer_id, proxy, answer.get("phases") or {})
        self._sockets = str(answer["network"]["sockets"])

    def _told(self) -> Spec:
        return Spec(PLAIN)
