"""All commands together, plugins' included."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lattice_sdk.cli import about, doctor, resources
from lattice_sdk.cli.connect import connect
from lattice_sdk.cli.egress import egress
from lattice_sdk.cli.enroll import enroll
from lattice_sdk.cli.events import denials, events
from lattice_sdk.cli.exec import exec_
from lattice_sdk.cli.failures import INTERRUPTED, LatticeGroup, report_defect
from lattice_sdk.cli.policy import policy
from lattice_sdk.cli.trusts import trusts

EPILOG = (
    "Settings come from arguments, then LATTICE_SERVER, LATTICE_TOKEN or LATTICE_TOKEN_FILE, "
    "LATTICE_WORKSPACE and so on, then from the config file. "
    "Exit status: 0 done, 1 an expectation failed, 2 wrong usage, 3 to 20 a LatticeError's, "
    "70 a defect, 130 Ctrl-C."
)


def _show_version(value: bool) -> None:
    if value:
        about.version()
        raise typer.Exit


def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions."),
    ] = False,
) -> None:
    """Give AI agents a WireGuard identity, a network their policy grants, and an end date.

    For example:

      lattice demo
    """
    del version


def build() -> typer.Typer:
    """The command line, with the commands of all plugins."""
    from lattice_sdk.plugins import notify

    app = typer.Typer(
        name="lattice",
        cls=LatticeGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(epilog=EPILOG)(root)
    notify("lattice_cli", app=app)
    app.command("exec", context_settings={"allow_interspersed_args": False})(exec_)
    app.command()(enroll)
    app.command()(connect)
    app.command()(egress)
    app.command()(events)
    app.command()(denials)
    app.add_typer(resources.peers, name="peers")
    app.add_typer(resources.services, name="services")
    app.add_typer(resources.tokens, name="tokens")
    app.add_typer(trusts, name="trusts")
    app.add_typer(resources.workspaces, name="workspaces")
    app.add_typer(policy, name="policy")
    app.command()(doctor.doctor)
    app.command()(about.plugins)
    app.command()(about.version)
    return app


def main() -> None:
    """The ``lattice`` command."""
    try:
        build()(prog_name="lattice")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(report_defect(error))
