"""``lattice policy``: a workspace's own presets and what else it decides for itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from lattice_sdk.cli.output import Format, show_document, show_one
from lattice_sdk.cli.parsing import parse_destination
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


@policy.command("test")
@connected
def try_policy(
    session: Session,
    file: Annotated[
        Path, typer.Argument(metavar="CASES", help="YAML or JSON; - is standard input.")
    ],
    workspace: Workspace = None,
    proposed: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="Decide by this policy instead."),
    ] = None,
) -> None:
    """Check that a policy says what is expected; exit status 1 if it does not.

    A case is `WHO reaches WHAT:PORT: allow` or `deny`. WHO is a preset or an
    agent, WHAT a service, preset, agent, host name, address or network. The
    workspace's services and agents are those that it has; the file may
    propose `policy` and changes of `services`. Needs an admin token.

    For example:

      lattice policy test cases.yaml --workspace ws-prod-agents --policy policy.yaml
    """
    document = read_document(file)
    unknown = sorted(document.keys() - {"cases", "policy", "services"})
    if unknown or not document.get("cases"):
        raise typer.BadParameter(f"{file} needs cases, and has no use for {', '.join(unknown)}")
    body: dict[str, Any] = {"cases": [parse_case(case) for case in document["cases"]]}
    body |= {name: document[name] for name in ("policy", "services") if document.get(name)}
    if proposed is not None:
        body["policy"] = read_document(proposed)
    path = policy_path(session, workspace) + "/test"
    done = session.run(lambda api: api.request("POST", path, body))
    if session.output is Format.table:
        for result in done["results"]:
            if not result["passed"]:
                typer.echo(f"FAILED {describe_case(result)}: {result['why']}")
        typer.echo(f"{done['passed']} passed, {done['failed']} failed")
    else:
        show_document(done, session.output)
    if done["failed"]:
        raise typer.Exit(1)


def parse_case(case: Any) -> dict[str, Any]:
    """A case in either form: ``WHO reaches WHAT:PORT: allow``, or a mapping.

    Raises:
        typer.BadParameter: it is neither.
    """
    if isinstance(case, dict) and len(case) == 1:
        ((text, expect),) = case.items()
        who, separator, what = str(text).partition(" reaches ")
        if separator:
            return {"from": who.strip(), "expect": expect, **_target(what.strip())}
    if not isinstance(case, dict) or not {"from", "to", "expect"} <= case.keys():
        raise typer.BadParameter(
            f"{case!r} is no case: write `sandboxed reaches github-tools:443: allow`"
        )
    allow = case.get("allow") or []
    if not isinstance(allow, list):
        raise typer.BadParameter(f"allow of {case!r} is no list")
    read = dict(case) | {"allow": [parse_destination(str(text)) for text in allow]}
    return read | _target(str(case["to"]))


def _target(text: str) -> dict[str, Any]:
    """``WHAT:PORT[/udp]``, where WHAT may begin with what it is."""
    kind = next((k for k in ("service:", "preset:", "agent:") if text.startswith(k)), "")
    found = parse_destination(text.removeprefix(kind))
    return found | {"to": kind + found["to"]}


def describe_case(case: dict[str, Any]) -> str:
    """A case in words."""
    protocol = "" if case["protocol"] == "tcp" else f"/{case['protocol']}"
    return f"{case['from']} reaches {case['to']}:{case['port']}{protocol}: {case['expect']}"


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
