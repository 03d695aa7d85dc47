"""``lattice enroll``: an identity by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lattice_sdk.cli.output import Format, show_one
from lattice_sdk.cli.parsing import parse_destination
from lattice_sdk.cli.session import Session, Workspace, connected

if TYPE_CHECKING:
    from lattice_sdk.client import ControlPlane
    from lattice_sdk.wire import EnrollResponse


@connected
def enroll(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the agent.")],
    preset: Annotated[
        str, typer.Option(metavar="PRESET", help="sandboxed, coordinator or isolated.")
    ] = "sandboxed",
    ttl: Annotated[str | None, typer.Option(metavar="1h", help="How long it lives.")] = None,
    agent_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Kind of agent.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT[/udp]",
            help="A destination of the preset isolated, a host name or an overlay address; may be "
            "repeated.",
        ),
    ] = None,
    workspace: Workspace = None,
    public_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Your WireGuard public key. Left out, the server makes the pair and the config "
            "holds the private key.",
        ),
    ] = None,
    config_out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the config for wg-quick there (mode 0600)."),
    ] = None,
) -> None:
    """Enroll an identity and print it. It lives until it expires or is deleted.

    What is printed holds secrets: the enrollment token, which renews and
    deletes the identity, and the config, unless --config-out takes it.

    For example:

      lattice enroll code-executor-001 --ttl 1h --config-out wg0.conf
    """
    from lattice_sdk.cli.files import PrivateFile
    from lattice_sdk.terms import make_terms

    request = make_terms(
        server=session.server,
        token=None,
        workspace=workspace,
        request={
            "agent_name": name,
            "agent_type": agent_type,
            "ttl": ttl,
            "policy_preset": preset,
            "public_key": public_key,
            "allow": [parse_destination(text) for text in allow or []],
        },
    ).request
    with PrivateFile(config_out) as file:

        async def work(api: ControlPlane) -> EnrollResponse:
            answer = await api.enroll(request)
            try:
                file.keep(answer.wireguard_config.get_secret_value())
            except BaseException:
                await api.delete_peer(
                    answer.peer_id, answer.enrollment_token, workspace_id=answer.workspace_id
                )
                raise
            return answer

        answer = session.run(work)
    shown = answer.model_dump(mode="json", by_alias=True, exclude_none=True)
    shown["enrollmentToken"] = answer.enrollment_token.get_secret_value()
    config = answer.wireguard_config.get_secret_value()
    if config_out is not None:
        del shown["wireguardConfig"]
        shown["configFile"] = str(config_out)
    elif session.output is Format.table:
        del shown["wireguardConfig"]
        shown["services"] = _services(answer)
        show_one(shown, session.output)
        typer.echo(f"\n{config}", nl=False)
        return
    else:
        shown["wireguardConfig"] = config
    if session.output is Format.table:
        shown["services"] = _services(answer)
    show_one(shown, session.output)


def _services(answer: EnrollResponse) -> list[str]:
    return [
        f"{name}:{port.port}"
        for service in answer.services
        for name in service.hostnames or [service.address]
        for port in service.ports
    ]
