"""``lattice policy``: a workspace's own presets and what else it decides for itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from lattice_sdk.cli.output import Format, show_document, show_one
from lattice_sdk.cli.session import Session, Workspace, connected, needed_workspace

policy = typer.Typer(
    no_args_is_help=True, help="Policy of a workspace: its own presets, private targets."
)

_FIELDS = ("presets", "privateTargets")
File = Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON; - is standard input.")]


@policy.command("get")
@connected
def get_policy(session: Session, workspace: Workspace = None) -> None:
    """Show a workspace's policy, complete. Needs an admin token.

    For example:

      lattice policy get --workspace ws-prod-agents --output yaml
    """
    path = policy_path(session, workspace)
    found = session.run(lambda api: api.request("GET", path))
    if session.output is Format.table:
        show_one(found, session.output)
        return
    show_document({name: found[name] for name in _FIELDS}, session.output)


@policy.command("set")
@connected
def set_policy(session: Session, file: File, workspace: Workspace = None) -> None:
    """Replace a workspace's policy by what a file says. Needs an admin token.

    Running agents and connectors have it within a second; flows that are not
    allowed any more are cut. What the file leaves out is as if never set.

    For example:

      lattice policy set policy.yaml --workspace ws-prod-agents
    """
    document = read_document(file)
    path = policy_path(session, workspace)
    show_one(session.run(lambda api: api.request("PUT", path, document)), session.output)


def policy_path(session: Session, workspace: str | None) -> str:
    """Where the workspace's policy is.

    Raises:
        ConfigurationError: no workspace is named.
    """
    return f"/api/v1/workspaces/{quote(needed_workspace(session, workspace), safe='')}/policy"


def read_document(file: Path) -> dict[str, Any]:
    """A mapping from a file of YAML, which JSON is too.

    Raises:
        ConfigurationError: it cannot be read, or holds something else.
    """
    import yaml

    from lattice_sdk.errors import ConfigurationError

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        document = yaml.safe_load(text)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigurationError(f"{file} does not hold a mapping", hint="Begin with `presets:`")
    return document
