"""``lattice workspaces``, ``peers``, ``tokens`` and ``services``: the API by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from lattice_sdk.cli.delegate import delegate
from lattice_sdk.cli.output import Format, show_list, show_one
from lattice_sdk.cli.paging import every
from lattice_sdk.cli.parsing import parse_permit, parse_ports
from lattice_sdk.cli.session import Session, Workspace, connected, needed_workspace
from lattice_sdk.cli.tokens import revoke_tokens, rotate_token

workspaces = typer.Typer(no_args_is_help=True, help="Workspaces: who shares tools and tokens.")
peers = typer.Typer(no_args_is_help=True, help="Identities: agents and tool services.")
tokens = typer.Typer(no_args_is_help=True, help="Tokens: who may enroll, and with what limits.")
services = typer.Typer(no_args_is_help=True, help="Tool services: what agents may reach.")

_WORKSPACE = {"workspaceId": "WORKSPACE", "createdAt": "CREATED"}
_PEER = {
    "peerId": "PEER",
    "name": "NAME",
    "kind": "KIND",
    "workspaceId": "WORKSPACE",
    "policyPreset": "PRESET",
    "overlayIP": "ADDRESS",
    "expiresAt": "EXPIRES",
}
_TOKEN = {
    "id": "TOKEN",
    "kind": "KIND",
    "workspaceId": "WORKSPACE",
    "service": "SERVICE",
    "presets": "PRESETS",
    "maxTTL": "MAX TTL",
    "used": "USED",
    "expiresAt": "EXPIRES",
    "revokedAt": "REVOKED",
}
_SERVICE = {
    "name": "NAME",
    "workspaceId": "WORKSPACE",
    "address": "ADDRESS",
    "ports": "PORTS",
    "designated": "DESIGNATED",
    "connected": "CONNECTED",
    "hostnames": "HOSTNAMES",
}


@workspaces.command("create")
@connected
def create_workspace(
    session: Session, workspace: Annotated[str, typer.Argument(metavar="ID")]
) -> None:
    """Create a workspace. One that is there already stays as it is. Needs an admin token.

    For example:

      lattice workspaces create ws-prod-agents
    """
    body = {"workspaceId": workspace}
    made = session.run(lambda api: api.request("POST", _path("workspaces"), body))
    show_one(made, session.output)


@workspaces.command("list")
@connected
def list_workspaces(session: Session) -> None:
    """List the workspaces. Needs an admin token.

    For example:

      lattice workspaces list --output json
    """
    show_list(every(session, "workspaces"), _WORKSPACE, session.output)


@peers.command("list")
@connected
def list_peers(session: Session, workspace: Workspace = None) -> None:
    """List living identities, of one workspace or of all the token may see.

    For example:

      lattice peers list --workspace ws-prod-agents
    """
    rows = every(session, "peers", workspaceId=session.workspace(workspace))
    show_list(rows, _PEER, session.output)


@peers.command("get")
@connected
def get_peer(session: Session, peer: Annotated[str, typer.Argument(metavar="PEER")]) -> None:
    """Show one identity, and the line of delegations that it stands in.

    For example:

      lattice peers get peer-4x2k7q
    """
    shown = session.run(lambda api: api.request("GET", _path("peers", peer)))
    if session.output is Format.table:
        for field, between in (("chain", " > "), ("subAgents", ", ")):
            shown[field] = between.join(map(_reference, shown.get(field) or [])) or None
    show_one(shown, session.output)


@peers.command("delete")
@connected
def delete_peers(session: Session, peer: Annotated[list[str], typer.Argument()]) -> None:
    """End identities at once: their tunnels, connections and grants go with them.

    One that is gone already is no error.

    For example:

      lattice peers delete peer-4x2k7q peer-9m3r2s
    """

    async def delete(api: Any) -> None:
        for one in peer:
            await api.request("DELETE", _path("peers", one))
            _done(session, "deleted", one)

    session.run(delete)


peers.command("delegate")(delegate)


@tokens.command("create")
@connected
def create_token(
    session: Session,
    workspace: Workspace = None,
    kind: Annotated[
        str, typer.Option(help="workspace, service, gateway, observer or admin.", metavar="KIND")
    ] = "workspace",
    service: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a service token: the tool service.")
    ] = None,
    preset: Annotated[
        list[str] | None, typer.Option(metavar="PRESET", help="Allowed preset; may be repeated.")
    ] = None,
    max_ttl: Annotated[
        str | None, typer.Option(metavar="1h", help="Longest life it may ask for.")
    ] = None,
    max_lifetime: Annotated[
        str | None, typer.Option(metavar="24h", help="Longest life with renewals.")
    ] = None,
    uses: Annotated[int | None, typer.Option(min=1, help="How many enrollments.")] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="720h", help="When the token itself ends.")
    ] = None,
    agent_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="Allowed agent type, code-*; may be repeated."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="Network it may be used from; may be repeated."),
    ] = None,
    delegation_depth: Annotated[
        int | None, typer.Option(min=0, help="Generations of sub-agents; 0 forbids delegation.")
    ] = None,
    allow_isolated: Annotated[
        bool,
        typer.Option(
            "--allow-isolated",
            help="Permit the preset isolated, whose agents name their destinations.",
        ),
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT[/udp]]",
            help="Permit allow lists that hold this: a host name, *. and a host name, * for all "
            "host names, an address or a CIDR; may be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the token there (0600) instead.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token alone.")] = False,
) -> None:
    """Create a token. Its text is shown now and never again. Needs an admin token.

    For example:

      lattice tokens create --workspace ws-prod-agents --max-ttl 1h --out ws.token
    """
    from lattice_sdk.cli.files import PrivateFile

    bound = kind in ("workspace", "service")
    body = {
        "kind": kind,
        "workspaceId": session.workspace(workspace) if bound else workspace,
        "service": service,
        "presets": preset or None,
        "maxTTL": max_ttl,
        "maxLifetime": max_lifetime,
        "uses": uses,
        "expiresIn": expires_in,
        "agentTypes": agent_type or None,
        "sources": source or None,
        "delegationDepth": delegation_depth,
        "allowIsolated": allow_isolated or None,
        "allow": [parse_permit(text) for text in allow] if allow else None,
    }
    given = {field: value for field, value in body.items() if value is not None}
    with PrivateFile(out) as file:
        made: dict[str, Any] = session.run(lambda api: api.request("POST", _path("tokens"), given))
        if out is not None:
            file.keep(made.pop("token") + "\n")
            made["tokenFile"] = str(out)
    if quiet and session.output is Format.table:
        typer.echo(made.get("token") or made["id"])
        return
    if session.output is Format.table:
        made = {field: value for field, value in made.items() if value is not None}
    show_one(made, session.output)


@tokens.command("list")
@connected
def list_tokens(session: Session, workspace: Workspace = None) -> None:
    """List tokens, without their texts. Needs an admin token.

    For example:

      lattice tokens list
    """
    rows = every(session, "tokens", workspaceId=session.workspace(workspace))
    show_list(rows, _TOKEN, session.output)


tokens.command("rotate")(rotate_token)
tokens.command("revoke")(revoke_tokens)


@services.command("add")
@connected
def add_service(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    port: Annotated[
        list[str], typer.Option(metavar="PORT[/udp]", help="Port agents use; may be repeated.")
    ],
    workspace: Workspace = None,
    hostname: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Host name for agents; NAME.lattice when left out."),
    ] = None,
    designated: Annotated[
        bool, typer.Option(help="Whether sandboxed and coordinator agents may reach it.")
    ] = True,
) -> None:
    """Add a tool service with an overlay address of its own. Needs an admin token.

    For example:

      lattice services add github-tools --workspace ws-prod-agents --port 443
    """
    body = {
        "name": name,
        "workspaceId": needed_workspace(session, workspace),
        "ports": parse_ports(port),
        "hostnames": hostname or [],
        "designated": designated,
    }
    made = session.run(lambda api: api.request("POST", _path("services"), body))
    show_one(made, session.output)


@services.command("change")
@connected
def change_service(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    workspace: Workspace = None,
    designated: Annotated[
        bool | None, typer.Option(help="Whether sandboxed and coordinator agents may reach it.")
    ] = None,
    port: Annotated[
        list[str] | None,
        typer.Option(metavar="PORT[/udp]", help="All its ports from now on; may be repeated."),
    ] = None,
    hostname: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="All its host names from now on; may be repeated."),
    ] = None,
) -> None:
    """Change a tool service; running agents gain and lose it at once. Needs an admin token.

    For example:

      lattice services change github-tools --no-designated
    """
    body = {
        "designated": designated,
        "ports": parse_ports(port) if port else None,
        "hostnames": hostname or None,
    }
    given = {field: value for field, value in body.items() if value is not None}
    params = {"workspaceId": session.workspace(workspace)}
    changed = session.run(
        lambda api: api.request("PATCH", _path("services", name), given, params=params)
    )
    show_one(changed, session.output)


@services.command("list")
@connected
def list_services(session: Session, workspace: Workspace = None) -> None:
    """List tool services. Needs an admin token.

    For example:

      lattice services list --output yaml
    """
    rows = every(session, "services", workspaceId=session.workspace(workspace))
    show_list(rows, _SERVICE, session.output)


@services.command("remove")
@connected
def remove_service(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    workspace: Workspace = None,
) -> None:
    """Remove a tool service, its tokens and every grant to it. Needs an admin token.

    For example:

      lattice services remove github-tools --workspace ws-prod-agents
    """
    params = {"workspaceId": session.workspace(workspace)}
    session.run(lambda api: api.request("DELETE", _path("services", name), params=params))
    _done(session, "removed", name)


def _reference(peer: Mapping[str, Any]) -> str:
    return f"{peer['peerId']} ({peer['name']}, {peer['policyPreset']})"


def _path(kind: str, name: str | None = None) -> str:
    return f"/api/v1/{kind}" + (f"/{quote(name, safe='')}" if name is not None else "")


def _done(session: Session, what: str, name: str) -> None:
    if session.output is Format.table:
        typer.echo(f"{what} {name}")
