"""The hooks of Lattice: the manual of plugin authors.

A plugin is a module or object with functions of these names, marked by
``pluggy.HookimplMarker("lattice")``, in a distribution with an entry point of the group
``lattice``. An implementation may leave out arguments that it does not need.

Hooks are called in threads of the SDK's own, never in the agent's. One that raises is logged and
changes nothing; only a tunnel backend that raises fails the enrollment (cleanly: the peer is
deleted again).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer
    from pydantic import SecretStr

    from lattice_sdk.backends import TunnelBackend
    from lattice_sdk.identity import Identity

PROJECT = "lattice"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def lattice_tunnel_backends() -> list[TunnelBackend]:  # type: ignore[empty-body]
    """Offer tunnel backends. The first that can serve is taken, or the one that is named.

    Backends of plugins are asked before the SDK's own.
    """


@hookspec(firstresult=True)
def lattice_credentials(server: str, workspace_id: str | None) -> str | SecretStr | None:
    """Give the workspace token for a control plane, or ``None`` to leave it to the next.

    Asked only when no token was given as an argument, by environment or by config file; again at
    each enrollment, so that a short-lived token may be fetched.
    """


@hookspec
def lattice_enrolled(identity: Identity) -> None:
    """An identity was granted; its tunnel is not up yet."""


@hookspec
def lattice_tunnel_up(identity: Identity, backend: str, phases: Mapping[str, float]) -> None:
    """The tunnel is proven; ``phases`` are seconds by name. Also after it was rebuilt."""


@hookspec
def lattice_renewed(identity: Identity) -> None:
    """The identity lives until ``identity.expires_at`` now."""


@hookspec
def lattice_renew_failed(identity: Identity, error: Exception, retry_in: float | None) -> None:
    """A renewal failed; the next attempt is in ``retry_in`` seconds, ``None`` if there is none."""


@hookspec
def lattice_expired(identity: Identity, reason: str) -> None:
    """The identity's life ended against its will; the tunnel is down."""


@hookspec
def lattice_closed(identity: Identity) -> None:
    """The identity was given back; tunnel and peer are gone."""


@hookspec
def lattice_cli(app: typer.Typer) -> None:
    """Add commands to the ``lattice`` command line."""
