"""``lattice doctor``: what this machine can do, and what to change."""

from __future__ import annotations

from typing import Annotated

import typer

from lattice_sdk.cli.output import Format, console, show_document, text_of
from lattice_sdk.cli.session import Session, connected

STYLES = {"ok": "green", "missing": "yellow", "failed": "bold red", "skipped": "dim"}


@connected
def doctor(
    session: Session,
    tunnel: Annotated[
        bool,
        typer.Option(help="With a workspace token: enroll an identity, prove its tunnel, leave."),
    ] = True,
) -> None:
    """Try what Lattice needs on this machine, and say what to change.

    `missing` is no fault: something else serves instead. Exit status 1 means
    that something needed failed.

    For example:

      lattice doctor --output json
    """
    from lattice_sdk.cli.checks import Verdict, control_plane, machine

    found = []
    for checks in (machine(), control_plane(session, tunnel=tunnel)):
        for check in checks:
            found.append(check)
            if session.output is Format.table:
                _print(check.name, check.verdict.value, check.detail, check.change)
    verdict = {check.name: check.verdict for check in found}
    can = {
        "userspace": verdict["engine"] is Verdict.ok,
        "netns": verdict["sandbox"] is Verdict.ok,
        "interface": verdict["interface"] is Verdict.ok,
        "gateway": verdict["gateway"] is Verdict.ok,
        "hostGateway": verdict["engine"] is verdict["CAP_NET_ADMIN"] is Verdict.ok,
    }
    failed = Verdict.failed in verdict.values()
    if session.output is not Format.table:
        items = [check.document() for check in found]
        show_document({"ok": not failed, "can": can, "checks": items}, session.output)
    else:
        names = {
            "userspace": "agents",
            "netns": "their programs in sandboxes",
            "interface": "a tunnel as an interface",
            "gateway": "a gateway",
            "hostGateway": "a host gateway",
        }
        able = ", ".join(names[key] for key, value in can.items() if value)
        typer.echo(f"\nThis machine can run: {able or 'nothing of Lattice'}")
    if failed:
        raise typer.Exit(1)


def _print(name: str, verdict: str, detail: str, change: str) -> None:
    from rich.text import Text

    line = Text(f"{verdict:8}", STYLES[verdict])
    line.append(f" {name:17}", "bold").append(text_of(detail), "")
    console().print(line, soft_wrap=True)
    if change and verdict != "ok":
        console().print(Text(f"{'':27}to change it: {text_of(change)}", "dim"), soft_wrap=True)
