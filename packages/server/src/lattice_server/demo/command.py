"""The command ``lattice demo``."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead.")
    ] = False,
) -> None:
    """Show the whole story on this machine, in under a minute and without root.

    A control plane, a gateway, three tool services and a LangGraph graph that
    obeys an injected prompt: what connects, what is refused, renewal,
    revocation, expiry. Each step checks what it shows; the exit status is 1
    when one fails.

    For example:

      lattice demo
    """
    if not sys.platform.startswith("linux"):
        _refuse(
            f"the gateway needs Linux, this is {sys.platform}; run the demo in a virtual machine "
            "or a container with Linux"
        )
    if importlib.util.find_spec("langgraph") is None:
        _refuse("the demo runs a LangGraph graph, and langgraph is not installed; "
                "run: pip install 'lattice-server[demo]'")  # fmt: skip
    from lattice_engine import private_directory
    from lattice_server.demo.story import TEMPORARY, Story
    from lattice_server.demo.view import JsonView, TextView, shown

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    with ExitStack() as stack:
        try:
            directory = Path(stack.enter_context(private_directory("demo-")))
            temporary = directory / TEMPORARY
            temporary.mkdir(0o700)
        except OSError as error:
            _refuse(
                f"cannot make a temporary directory: {error}; set TMPDIR to one that is writable"
            )
        # What the parts make goes there as well, so that "no file is left" covers it.
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        view = stack.enter_context(shown(JsonView() if as_json else TextView()))
        with Story(directory, view) as story:
            outcomes = story.play()
        view.close(outcomes)
    if not all(outcome.ok for outcome in outcomes):
        raise typer.Exit(1)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _refuse(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
