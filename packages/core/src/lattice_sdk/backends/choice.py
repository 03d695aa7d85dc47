"""Which backend serves."""

from __future__ import annotations

from collections.abc import Sequence

from lattice_sdk.backends.base import TunnelBackend
from lattice_sdk.errors import BackendUnavailable

BY_NAME_ONLY = "none"  # it can always serve, and gives no network: never a silent fallback


def choose(offered: Sequence[TunnelBackend], name: str | None) -> tuple[TunnelBackend, str]:
    """The backend to use, and why it.

    Args:
        offered: in the order of preference.
        name: the one that was asked for, if any.

    Raises:
        BackendUnavailable: there is none of that name, or none can serve.
    """
    if name is not None:
        for backend in offered:
            if backend.name == name:
                if (why := backend.unavailable()) is not None:
                    raise BackendUnavailable(
                        f"the tunnel backend {name} cannot serve here: {why}",
                        hint="`lattice doctor` says what to change",
                    )
                return backend, "asked for by name"
        known = ", ".join(sorted({backend.name for backend in offered}))
        raise BackendUnavailable(
            f"there is no tunnel backend named {name!r}", hint=f"Known here: {known}"
        )
    reasons: list[str] = []
    for backend in offered:
        if backend.name == BY_NAME_ONLY:
            continue
        if (why := backend.unavailable()) is None:
            skipped = f", since {'; '.join(reasons)}" if reasons else ""
            return backend, f"the first that can serve{skipped}"
        reasons.append(f"{backend.name}: {why}")
    raise BackendUnavailable(
        f"no tunnel backend can serve here ({'; '.join(reasons) or 'none is installed'})",
        hint="`lattice doctor` says what to change; backend='none' hands out the config alone",
    )
