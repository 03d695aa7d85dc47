"""``lattice events``: what happened, and what happens."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lattice_sdk.cli.output import Format, show_document, show_list, text_of
from lattice_sdk.cli.paging import every
from lattice_sdk.cli.session import Session, Workspace, connected

if TYPE_CHECKING:
    from lattice_sdk.client import ControlPlane

PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts to follow again
_COLUMNS = {
    "seq": "SEQ",
    "time": "TIME",
    "type": "EVENT",
    "workspaceId": "WORKSPACE",
    "peerId": "PEER",
    "name": "NAME",
    "data": "DETAILS",
}


@connected
def events(
    session: Session,
    after: Annotated[
        int | None, typer.Option(min=0, metavar="SEQ", help="Only events with a greater number.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as things happen, until Ctrl-C.")
    ] = False,
    event_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Only these: denied, expired, …")
    ] = None,
    peer: Annotated[
        str | None, typer.Option(metavar="PEER", help="Only those of this peer.")
    ] = None,
) -> None:
    """Show the event log: enrolled, renewed, revoked, expired, denied.

    Needs an observer's or an admin token.

    With --follow and --output json each event is one line. A control plane
    that restarts is followed on, without a gap.

    For example:

      lattice events --type denied --follow
    """
    if follow:
        session.run(lambda api: _follow(api, after or 0, event_type, peer, session.output))
        return

    async def collect(api: ControlPlane) -> list[dict[str, Any]]:
        return [
            event async for event in api.stream_events(after, event_type=event_type, peer_id=peer)
        ]

    show_list(session.run(collect), _COLUMNS, session.output)


_DENIAL = {
    "peerId": "PEER",
    "name": "NAME",
    "destination": "DESTINATION",
    "protocol": "PROTOCOL",
    "port": "PORT",
    "packets": "PACKETS",
    "firstAt": "FIRST",
    "lastAt": "LAST",
}


@connected
def denials(
    session: Session,
    workspace: Workspace = None,
    peer: Annotated[
        str | None, typer.Option(metavar="PEER", help="Only those of this peer.")
    ] = None,
) -> None:
    """Show what agents were refused: who, to where, how often, first and last.

    Also of agents that have ended. Needs an observer's or an admin token.

    For example:

      lattice denials --peer peer-4x2k7q
    """
    query = {"workspaceId": session.workspace(workspace), "peerId": peer}
    show_list(every(session, "denials", **query), _DENIAL, session.output)


async def _follow(
    api: ControlPlane, after: int, event_type: str | None, peer: str | None, output: Format
) -> None:
    from lattice_sdk.errors import ServerError, ServerUnreachable

    attempt, followed = 0, False
    while True:
        try:
            async for event in api.stream_events(
                after, follow=True, event_type=event_type, peer_id=peer
            ):
                attempt, followed = 0, True
                after = max(after, int(event.get("seq", 0)))
                _print(event, output)
            reason = "the control plane ended the stream"
        except (ServerUnreachable, ServerError) as error:
            if not followed:
                raise  # nothing was followed yet: a wrong URL is not waited for
            reason = error.message
        followed = True
        if attempt == 0:
            typer.echo(f"note: {reason}; following on when it is back", err=True)
        await asyncio.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
        attempt += 1


def _print(event: Mapping[str, Any], output: Format) -> None:
    if output is Format.table:
        who = " ".join(text_of(event[key]) for key in ("peerId", "name") if event.get(key))
        line = f"{event.get('seq')} {event.get('time')} {text_of(event.get('type'))} {who}"
        typer.echo(f"{line} {text_of(event.get('data') or {})}".rstrip())
    elif output is Format.json:
        typer.echo(json.dumps(event))
    else:
        sys.stdout.write("---\n")
        show_document(event, output)
    sys.stdout.flush()
