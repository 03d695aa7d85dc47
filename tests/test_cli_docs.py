"""The command's reference is that of the command, and its examples are accepted by it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from lattice_sdk.cli import build

ROOT = Path(__file__).parent.parent


def leaves(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Each command that does something, by its words."""
    members = getattr(command, "commands", None)
    if members is None:
        return {path: command}
    found: dict[tuple[str, ...], Any] = {}
    for name, member in members.items():
        found |= leaves(member, (*path, name))
    return found


COMMANDS = leaves(typer.main.get_command(build()))


def test_reference_is_of_these_commands() -> None:
    made = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "cli_reference.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ROOT / "docs" / "cli.md").read_text() == made.stdout, "run `make docs`"


def test_every_command_of_the_design_is_there() -> None:
    words = {" ".join(path) for path in COMMANDS}
    assert words >= {
        "demo", "dev", "server", "gateway", "connect", "enroll", "events", "doctor",
        "peers list", "peers get", "peers delete", "tokens create", "tokens list",
        "tokens revoke", "services add", "services list", "services remove",
    }  # fmt: skip


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_example_is_accepted_by_its_command(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    _, _, example = (command.help or "").partition("For example:")
    lines = example.replace("\\\n", " ").strip().splitlines()
    assert lines, "the help has no example"
    for line in lines:
        words = shlex.split(line.partition(" | ")[0])
        assert words[: len(path) + 1] == ["lattice", *path]
        # Only read, not run: what is missing or unknown fails here.
        command.make_context(" ".join(path), words[len(path) + 1 :])
