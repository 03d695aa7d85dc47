"""``lattice-claude``: the ``claude`` command under an identity."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lattice_sdk import LatticeAgent
from lattice_sdk.cli.failures import LatticeCommand, report_defect
from lattice_sdk.cli.parsing import parse_destination
from lattice_sdk.cli.session import Session, Workspace, connected

if TYPE_CHECKING:
    from lattice_sdk.backends.choice import Wanted

NAME = "lattice-claude"
SETTINGS = "--settings"


@connected
def claude(
    session: Session,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND...",
            help="The command: claude from PATH, or else of the claude-agent-sdk wheel; or a path.",
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call the agent.")] = "claude",
    preset: Annotated[
        str, typer.Option(metavar="PRESET", help="sandboxed, coordinator or isolated.")
    ] = "sandboxed",
    ttl: Annotated[
        str | None, typer.Option(metavar="1h", help="Life from one renewal to the next.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT[/udp]",
            help="A destination of the preset isolated; may be repeated.",
        ),
    ] = None,
    workspace: Workspace = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="Tunnel backend [LATTICE_BACKEND].")
    ] = None,
    isolation: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Its network namespace: required, preferred or proxy (none) [LATTICE_ISOLATION]. "
            "Default: preferred.",
        ),
    ] = None,
) -> None:
    """Run the claude command under an identity of its own, until it ends.

    Terminal, signals and exit status are claude's.

    For example:

      lattice-claude --ttl 30m -- claude -p "What is new?"
    """
    from lattice_claude.child import end_like, run

    executable = _find(command[0])
    agent = LatticeAgent(
        server=session.server,
        token=session.token(),
        agent_name=name,
        policy_preset=preset,
        workspace_id=workspace,
        ttl=ttl,
        allow=[parse_destination(text) for text in allow or []],
        backend=backend,
        isolation=cast("Wanted | None", isolation),  # another word is refused as a setting
        verify=session.settings.ca_file,
        timeout=session.settings.timeout,
    )
    with agent:
        start, environment, held = _prepare(agent, executable, command[1:])
        status = run(start, environment)
        del held
    end_like(status)


def _find(name: str) -> str:
    from lattice_claude.launch import bundled_cli
    from lattice_sdk import ConfigurationError

    found = shutil.which(name) or (bundled_cli() if name == "claude" else None)
    if found is None:
        raise ConfigurationError(
            f"there is no command {name!r} on PATH",
            hint="Write claude, or the path of its executable, after --",
        )
    return found


def _prepare(
    agent: LatticeAgent, executable: str, arguments: list[str]
) -> tuple[list[str], dict[str, str], object]:
    """The command, its environment, and what must be kept until it ends."""
    from lattice_claude.launch import CREDENTIALS, launch
    from lattice_claude.settings import with_environment

    way = launch(agent, executable)
    environment = {**os.environ, **way.environment}
    for credential in CREDENTIALS:
        environment.pop(credential, None)
    if not way.secret_environment:
        return [*way.command, *arguments], environment, None
    given, others = _take_settings(arguments)
    private = with_environment(given, None, way.secret_environment)
    return [*way.command, SETTINGS, private.path, *others], environment, private


def _take_settings(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of ``--settings``, of which the CLI takes one only, and the other arguments."""
    given, others, left = None, [], iter(arguments)
    for argument in left:
        if argument == "--":
            others += [argument, *left]
        elif argument == SETTINGS:
            given = next(left, None)
        elif argument.startswith(f"{SETTINGS}="):
            given = argument.partition("=")[2]
        else:
            others.append(argument)
    return given, others


def main() -> None:
    """The ``lattice-claude`` command."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command(
        cls=LatticeCommand,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "allow_interspersed_args": False,
        },
    )(claude)
    try:
        app(prog_name=NAME)
    except Exception as error:
        sys.exit(report_defect(error))
