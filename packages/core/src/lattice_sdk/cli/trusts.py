"""``lattice trusts``: workloads that enroll with a JWT of their own instead of a token."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from lattice_sdk.cli.output import Format, show_list, show_one
from lattice_sdk.cli.paging import every
from lattice_sdk.cli.parsing import parse_permit
from lattice_sdk.cli.session import Session, Workspace, connected, needed_workspace

trusts = typer.Typer(no_args_is_help=True, help="Trusts: whose JWTs may enroll, instead of tokens.")

_TRUST = {
    "id": "TRUST",
    "workspaceId": "WORKSPACE",
    "issuer": "ISSUER",
    "audience": "AUDIENCE",
    "claims": "CLAIMS",
    "presets": "PRESETS",
    "used": "USED",
    "revokedAt": "REVOKED",
}


@trusts.command("add")
@connected
def add_trust(
    session: Session,
    issuer: Annotated[str, typer.Argument(metavar="ISSUER", help="The iss of its tokens.")],
    audience: Annotated[
        str, typer.Option(metavar="TEXT", help="The aud that its tokens have to have.")
    ],
    claim: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=PATTERN",
            help="A claim that has to fit, with * for any characters; may be repeated.",
        ),
    ],
    workspace: Workspace = None,
    jwks_uri: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Its keys: https://… or file:///…; found by discovery otherwise."
        ),
    ] = None,
    max_age: Annotated[
        str | None, typer.Option(metavar="10m", help="How old a token may be.")
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
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST[:PORT[/udp]]",
            help="Permit allow lists that hold this, as for tokens; may be repeated.",
        ),
    ] = None,
    agent_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="Allowed agent type, code-*; may be repeated."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="Network it may enroll from; may be repeated."),
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
) -> None:
    """Trust the JWTs of an issuer, as far as their claims fit. Needs an admin token.

    For example:

      lattice trusts add https://kubernetes.default.svc.cluster.local \
        --audience lattice --jwks-uri file:///etc/lattice/cluster-keys.json \
        --claim sub=system:serviceaccount:agents:code-executor \
        --workspace ws-prod-agents --preset sandboxed --max-ttl 1h
    """
    body = {
        "workspaceId": needed_workspace(session, workspace),
        "issuer": issuer,
        "audience": audience,
        "claims": dict(map(_claim, claim)),
        "jwksUri": jwks_uri,
        "maxAge": max_age,
        "presets": preset or None,
        "maxTTL": max_ttl,
        "maxLifetime": max_lifetime,
        "allow": [parse_permit(text) for text in allow] if allow else None,
        "agentTypes": agent_type or None,
        "sources": source or None,
        "delegationDepth": delegation_depth,
        "allowIsolated": allow_isolated or None,
    }
    given = {field: value for field, value in body.items() if value is not None}
    made = session.run(lambda api: api.request("POST", "/api/v1/trusts", given))
    if session.output is Format.table:
        made = {field: value for field, value in made.items() if value is not None}
    show_one(made, session.output)


@trusts.command("list")
@connected
def list_trusts(session: Session, workspace: Workspace = None) -> None:
    """List trusts. Needs an admin token.

    For example:

      lattice trusts list --output yaml
    """
    rows = every(session, "trusts", workspaceId=session.workspace(workspace))
    show_list(rows, _TRUST, session.output)


@trusts.command("revoke")
@connected
def revoke_trusts(
    session: Session,
    trust_id: Annotated[list[str], typer.Argument()],
    agents: Annotated[
        bool, typer.Option("--agents", help="End the identities that it enrolled, too.")
    ] = False,
) -> None:
    """Take no more JWTs by these trusts. Needs an admin token.

    Identities that were enrolled by them stay, unless --agents is given:
    then they and their sub-agents end at once.

    For example:

      lattice trusts revoke trust-7k2m4q --agents
    """

    async def revoke(api: Any) -> None:
        for one in trust_id:
            params = {"agents": "true"} if agents else None
            path = f"/api/v1/trusts/{quote(one, safe='')}"
            await api.request("DELETE", path, params=params)
            if session.output is Format.table:
                typer.echo(f"revoked {one}")

    session.run(revoke)


def _claim(text: str) -> tuple[str, str]:
    # The name of a claim may be a URL, its value anything but it has no "=" in front.
    name, separator, pattern = text.partition("=")
    if not separator or not name or not pattern:
        raise typer.BadParameter(f"{text!r} is not NAME=PATTERN, such as sub=ci:deploy-*")
    return name, pattern
