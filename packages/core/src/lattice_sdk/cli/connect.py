"""``lattice connect``: a tool service's way into the overlay."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lattice_sdk.cli.output import Format
from lattice_sdk.cli.parsing import parse_target
from lattice_sdk.cli.session import Session, Workspace, connected, needed_workspace

if TYPE_CHECKING:
    from lattice_sdk.agent import Face
    from lattice_sdk.client import ControlPlane
    from lattice_sdk.connector import ServiceConnector

LOOK = 0.5  # seconds between looks at whether the connector lives


@connected
def connect(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tool service.")],
    listen: Annotated[
        list[int] | None,
        typer.Option(min=1, max=65535, metavar="PORT", help="Port agents use."),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Where the tool really listens, for each --listen."),
    ] = None,
    advertise: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR",
            help="Lead agents into a network of this machine instead, as far as their allow lists "
            "and tokens go; may be repeated.",
        ),
    ] = None,
    workspace: Workspace = None,
    hostname: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Host name for agents; NAME.lattice when left out. Admin only."
        ),
    ] = None,
    designated: Annotated[
        bool, typer.Option(help="Of a service that is made: sandboxed agents may reach it.")
    ] = True,
    udp: Annotated[bool, typer.Option("--udp", help="The ports are UDP.")] = False,
    proxy_protocol: Annotated[
        bool,
        typer.Option(
            "--proxy-protocol",
            help="Tell the tool who calls, by a PROXY v1 line before the data (the tool must "
            "expect it).",
        ),
    ] = False,
) -> None:
    """Connect a tool service, or a network, to the overlay, until Ctrl-C.

    Takes the service's token. With an admin token a service that is not there
    is made first. Runs in the foreground.

    For example:

      lattice connect github-tools --listen 443 --to 127.0.0.1:9000
      lattice connect office --advertise 10.0.7.0/24
    """
    if advertise:
        if listen or to or hostname or udp or proxy_protocol:
            raise typer.BadParameter("--advertise goes with none of a tool service's options")
        _connect_networks(session, name, advertise, workspace)
        return
    listen, to = listen or [], to or []
    if len(listen) != len(to) or not listen:
        raise typer.BadParameter("each --listen PORT needs its --to HOST:PORT")
    if len(set(listen)) != len(listen):
        raise typer.BadParameter("a --listen PORT is there twice")
    if udp and proxy_protocol:
        raise typer.BadParameter("--proxy-protocol is for TCP")
    forwards = dict(zip(listen, map(parse_target, to), strict=True))
    protocol: Literal["udp", "tcp"] = "udp" if udp else "tcp"
    ports = [{"port": port, "protocol": protocol} for port in listen]
    service: dict[str, Any] = {"ports": ports, "designated": designated}
    service |= {"name": name, "hostnames": hostname or []}
    place = session.run(lambda api: ensure_service(session, api, service, workspace))

    from lattice_sdk.connector import ServiceConnector

    connector = ServiceConnector(
        session.server,
        session.token(),
        name,
        listen=forwards,
        protocol=protocol,
        workspace_id=place,
        proxy_protocol="v1" if proxy_protocol else None,
        verify=session.settings.ca_file,
        timeout=session.settings.timeout,
    )
    until_ended(connector, name, lambda: _announce(connector, forwards, session.output))


def _connect_networks(
    session: Session, name: str, networks: list[str], workspace: str | None
) -> None:
    from lattice_sdk.connector import NetworkConnector

    service = {"name": name, "kind": "network", "networks": networks, "designated": False}
    place = session.run(lambda api: ensure_service(session, api, service, workspace))
    connector = NetworkConnector(
        session.server,
        session.token(),
        name,
        networks=networks,
        workspace_id=place,
        verify=session.settings.ca_file,
        timeout=session.settings.timeout,
    )

    def announce() -> None:
        if session.output is Format.json:
            line = {"ready": True, "service": name, "peerId": connector.peer_id}
            typer.echo(json.dumps(line | {"networks": networks}))
            return
        typer.echo(f"{name}: {', '.join(networks)}")
        typer.echo("Ctrl-C ends it.", err=True)

    until_ended(connector, name, announce)


def until_ended(connector: Face, name: str, announce: Callable[[], None]) -> None:
    """Run a connector until a signal.

    Args:
        connector: not open yet.
        name: of its service.
        announce: called once it serves.

    Raises:
        IdentityExpired: it has lost its identity.
    """
    from lattice_sdk.errors import IdentityExpired
    from lattice_sdk.schedule import State

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    with connector:
        announce()
        while not ended.wait(LOOK):
            if connector.state is State.EXPIRED:
                raise IdentityExpired(
                    f"the connector of {name} has lost its identity: renewals failed, another "
                    "connector took over, or the service was removed",
                    peer_id=connector.peer_id,
                    hint="Start it again; `lattice services list` shows the services",
                )


async def ensure_service(
    session: Session, api: ControlPlane, service: dict[str, Any], workspace: str | None
) -> str | None:
    """Make the service if the token is an admin's; the workspace to connect it in."""
    from lattice_sdk.errors import NotPermitted

    place = session.workspace(workspace)
    try:
        page = await api.request("GET", "/api/v1/services", params={"workspaceId": place})
    except NotPermitted:
        return workspace  # a service token, which knows its workspace
    found = [one["workspaceId"] for one in page["items"] if one["name"] == service["name"]]
    while not found and page.get("next"):
        query = {"workspaceId": place, "cursor": page["next"]}
        page = await api.request("GET", "/api/v1/services", params=query)
        found = [one["workspaceId"] for one in page["items"] if one["name"] == service["name"]]
    if len(found) == 1:
        return str(found[0])
    place = needed_workspace(session, workspace)
    await api.request("POST", "/api/v1/services", {**service, "workspaceId": place})
    return place


def _announce(connector: ServiceConnector, forwards: dict[int, str], output: Format) -> None:
    if output is Format.json:
        line = {
            "ready": True,
            "service": connector.name,
            "peerId": connector.peer_id,
            "overlayIP": connector.overlay_ip,
            "forwards": {str(port): target for port, target in forwards.items()},
        }
        typer.echo(json.dumps(line))
        return
    for port, target in forwards.items():
        typer.echo(f"{connector.name}: {connector.overlay_ip}:{port} -> {target}")
    typer.echo("Ctrl-C ends it.", err=True)
