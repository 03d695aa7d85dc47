"""``lattice exec`` as the command line's library sees it, for help and documentation.

Ordinarily the command does not come here: see :mod:`lattice_sdk.execution`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lattice_sdk.cli.parsing import parse_destination, parse_forward
from lattice_sdk.cli.session import CONNECTION, Workspace


def exec_(
    command: Annotated[
        list[str], typer.Argument(metavar="PROGRAM [ARGUMENTS]...", help="What to run.")
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET",
            help="sandboxed, coordinator or isolated. Left out it is the only one that the token "
            "names, else sandboxed; with --allow isolated.",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT[/udp]", help="A destination it may reach; may be repeated."
        ),
    ] = None,
    forward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LISTEN:[HOST:]PORT",
            help="Forward a port of the overlay address to this machine; may be repeated. What "
            "listens inside needs none.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What to call it; as the program if left out."),
    ] = None,
    agent_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Kind of agent.")
    ] = None,
    ttl: Annotated[
        str | None, typer.Option(metavar="1h", help="Life from one renewal to the next.")
    ] = None,
    workspace: Workspace = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="Tunnel backend [LATTICE_BACKEND].")
    ] = None,
    isolation: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help="required: a network namespace or nothing; preferred: where the machine can, and "
            "a warning where not; proxy: none [LATTICE_ISOLATION].",
        ),
    ] = None,
    unix_sockets: Annotated[
        bool,
        typer.Option(
            "--unix-sockets",
            help="Let it make sockets of the Unix family, which reach what listens in the file "
            "system.",
        ),
    ] = False,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="[LATTICE_SERVER]", rich_help_panel=CONNECTION)
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the token [LATTICE_TOKEN_FILE]",
            rich_help_panel=CONNECTION,
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="The token. Other users see arguments (ps): prefer LATTICE_TOKEN or --token-file.",
            rich_help_panel=CONNECTION,
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificate authorities, PEM [LATTICE_CA_FILE]",
            rich_help_panel=CONNECTION,
        ),
    ] = None,
) -> None:
    """Run a program as an agent, with no other network than its policy grants.

    It has its files, user and terminal as without; its signals and its exit
    status are passed on. 125 is this command's own failure, 126 and 127 are a
    program that cannot be executed or is not there.

    For example:

      lattice exec --allow api.anthropic.com:443 -- python my_agent.py
    """
    from lattice_sdk.execution.main import execute
    from lattice_sdk.execution.options import Options

    options = Options()
    options.command = command
    options.preset, options.name, options.agent_type, options.ttl = preset, name, agent_type, ttl
    options.allow = [parse_destination(text) for text in allow or []]
    options.forward = dict(parse_forward(text) for text in forward or [])
    options.workspace, options.backend, options.isolation = workspace, backend, isolation
    options.unix_sockets, options.server, options.token = unix_sockets, server, token
    options.token_file = str(token_file) if token_file is not None else None
    options.ca_file = str(ca_file) if ca_file is not None else None
    execute(options)
