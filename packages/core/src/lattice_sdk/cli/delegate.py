"""``lattice peers delegate``: a sub-agent's token by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lattice_sdk.cli.output import Format, show_one
from lattice_sdk.cli.parsing import parse_destination
from lattice_sdk.cli.session import Session, connected

if TYPE_CHECKING:
    from lattice_sdk.client import ControlPlane
    from lattice_sdk.wire import DelegateResponse


@connected
def delegate(
    session: Session,
    peer: Annotated[str, typer.Argument(metavar="PEER", help="The agent that delegates.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the sub-agent.")],
    preset: Annotated[
        str | None, typer.Option(metavar="PRESET", help="No wider than the agent's own.")
    ] = None,
    ttl: Annotated[str | None, typer.Option(metavar="10m", help="How long it lives.")] = None,
    max_lifetime: Annotated[
        str | None, typer.Option(metavar="1h", help="Longest life with renewals.")
    ] = None,
    agent_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Kind of agent.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT[/udp]",
            help="A destination of the preset isolated; may be repeated.",
        ),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=0, help="Generations that it may delegate to in turn.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the token there (0600) instead.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token alone.")] = False,
) -> None:
    """Let an agent delegate: make a token with which one sub-agent enrolls.

    The token of this command is the agent's own enrollment token. The
    sub-agent has never more than the agent, and ends with it.

    For example:

      lattice peers delegate peer-4x2k7q searcher --ttl 10m --token-file agent.token
    """
    from lattice_sdk.cli.files import PrivateFile
    from lattice_sdk.delegation import make_request
    from lattice_sdk.errors import ConfigurationError

    request = make_request(
        name,
        {
            "policy_preset": preset,
            "ttl": ttl,
            "max_lifetime": max_lifetime,
            "agent_type": agent_type,
            "allow": [parse_destination(text) for text in allow] if allow else None,
            "depth": depth,
        },
    )
    token = session.token()
    if token is None:
        raise ConfigurationError(
            "no token is set",
            code="missing_token",
            hint="Pass --token-file FILE with the agent's enrollment token",
        )

    async def work(api: ControlPlane) -> DelegateResponse:
        return await api.delegate(peer, token, request)

    with PrivateFile(out) as file:
        answer = session.run(work)
        secret = answer.enrollment_token.get_secret_value()
        shown: dict[str, Any] = answer.model_dump(mode="json", by_alias=True, exclude_none=True)
        shown["enrollmentToken"] = secret
        if out is not None:
            file.keep(secret + "\n")
            del shown["enrollmentToken"]
            shown["tokenFile"] = str(out)
    if quiet and session.output is Format.table:
        typer.echo(shown.get("enrollmentToken", str(out)))
        return
    show_one(shown, session.output)
