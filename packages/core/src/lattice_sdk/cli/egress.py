"""``lattice egress``: the workspace's way to host names."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lattice_sdk.cli.connect import ensure_service, until_ended
from lattice_sdk.cli.output import Format
from lattice_sdk.cli.session import Session, Workspace, connected


@connected
def egress(
    session: Session,
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="What the connector is called.")
    ] = "egress",
    workspace: Workspace = None,
) -> None:
    """Run the workspace's egress connector, in the foreground, until Ctrl-C.

    It connects agents to the host names of their allow lists, as far as
    their tokens permit, and to nothing else. A name that leads to a private,
    loopback, link-local or cloud metadata address is refused unless the
    workspace's policy has its network in privateTargets.
    Takes the connector's service token. With an admin token a connector that
    is not there is made first.

    For example:

      lattice egress --workspace ws-prod-agents
    """
    from lattice_sdk.egress import EgressConnector

    service = {"name": name, "kind": "egress", "designated": False}
    place = session.run(lambda api: ensure_service(session, api, service, workspace))
    connector = EgressConnector(
        session.server,
        session.token(),
        name,
        workspace_id=place,
        verify=session.settings.ca_file,
        timeout=session.settings.timeout,
    )

    def announce() -> None:
        if session.output is Format.json:
            line = {"ready": True, "service": name, "peerId": connector.peer_id}
            typer.echo(json.dumps(line | {"overlayIP": connector.overlay_ip}))
            return
        typer.echo(f"{name}: host names of the workspace {place or ''} are served".rstrip())
        typer.echo("Ctrl-C ends it.", err=True)

    until_ended(connector, name, announce)
