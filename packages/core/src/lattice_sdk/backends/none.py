"""``none``: no tunnel of ours; the WireGuard config is handed to the caller."""

from __future__ import annotations

from lattice_sdk.backends.base import Tunnel, TunnelBackend, TunnelSpec


class _Nothing(Tunnel):
    phases: dict[str, float] = {}  # noqa: RUF012 - empty, and never written

    async def close(self) -> None:
        return


class NoTunnel(TunnelBackend):
    """Serves everywhere, and carries nothing."""

    name = "none"
    by_name_only = True  # it can always serve, and gives no network: never a silent fallback

    def unavailable(self) -> str | None:
        """Never."""
        return None

    async def open(self, spec: TunnelSpec) -> Tunnel:
        """Nothing to bring up."""
        return _Nothing()
