"""The commands that this package adds to ``lattice``."""

from __future__ import annotations

import pluggy
import typer

hookimpl = pluggy.HookimplMarker("lattice")


@hookimpl
def lattice_cli(app: typer.Typer) -> None:
    """Add ``lattice k8s``."""
    from lattice_k8s_job.inject.command import inject

    group = typer.Typer(help="Network identity for pods.", no_args_is_help=True)
    group.callback()(_group)
    group.command()(inject)
    app.add_typer(group, name="k8s")


def _group() -> None:
    """Give pods an identity."""
