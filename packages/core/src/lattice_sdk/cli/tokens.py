"""``lattice tokens rotate`` and ``revoke``: a new text for a token, and its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from lattice_sdk.cli.output import Format, show_one
from lattice_sdk.cli.session import Session, connected


@connected
def rotate_token(
    session: Session,
    token_id: Annotated[str, typer.Argument(metavar="TOKEN_ID")],
    overlap: Annotated[
        str | None,
        typer.Option(metavar="1h", help="How long the former text holds as well; not at all."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the token there (0600) instead.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the token alone.")] = False,
) -> None:
    """Give a token a new text. Its id, its limits and its agents stay. Needs an admin token.

    The text is shown now and never again.

    For example:

      lattice tokens rotate token-7k2m4q --overlap 1h --out ws.token
    """
    from lattice_sdk.cli.files import PrivateFile

    body = {"overlap": overlap} if overlap is not None else {}
    with PrivateFile(out) as file:
        made: dict[str, Any] = session.run(
            lambda api: api.request("POST", f"{_path(token_id)}/rotate", body)
        )
        if out is not None:
            file.keep(made.pop("token") + "\n")
            made["tokenFile"] = str(out)
    if quiet and session.output is Format.table:
        typer.echo(made.get("token") or made["id"])
        return
    if session.output is Format.table:
        made = {field: value for field, value in made.items() if value is not None}
    show_one(made, session.output)


@connected
def revoke_tokens(
    session: Session,
    token_id: Annotated[list[str], typer.Argument()],
    agents: Annotated[
        bool,
        typer.Option("--agents", help="End the identities that it enrolled, too."),
    ] = False,
) -> None:
    """Revoke tokens by their ids: nobody enrolls with them any more. Needs an admin token.

    Identities that were enrolled with them stay, unless --agents is given:
    then they and their sub-agents end at once.

    For example:

      lattice tokens revoke token-7k2m4q --agents
    """

    async def revoke(api: Any) -> None:
        for one in token_id:
            params = {"agents": "true"} if agents else None
            await api.request("DELETE", _path(one), params=params)
            if session.output is Format.table:
                typer.echo(f"revoked {one}")

    session.run(revoke)


def _path(token_id: str) -> str:
    return f"/api/v1/tokens/{quote(token_id, safe='')}"
