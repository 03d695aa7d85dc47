"""Print docs/cli.md from the command tree itself: ``make docs``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import Any

import typer.main

from lattice_sdk import errors
from lattice_sdk.cli import build
from lattice_sdk.errors import LatticeError

INTRODUCTION = """\
# The `lattice` command

Made by `make docs` from the commands themselves.

Settings come from arguments, then from the environment (`LATTICE_SERVER`, `LATTICE_TOKEN` or
`LATTICE_TOKEN_FILE`, `LATTICE_WORKSPACE`, …), then from the config file; see
[the SDK](sdk.md#settings). Commands that manage workspaces, tokens, services and events take an
admin token, `connect` a service's, `enroll` a workspace's.

`--output table` is for people, `--output json` and `--output yaml` are for programs and do not
change. An error is one sentence on standard error with what to do; with `--output json` it is a
JSON object there.
"""


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command of the tree, groups before their members."""
    yield path, command
    for name in sorted(getattr(command, "commands", {})):
        yield from commands(command.commands[name], (*path, name))


def kind_of(parameter: Any) -> str:
    """What stands for the value where the command names nothing."""
    kind = parameter.type_descriptor.annotation
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return "/".join(str(member.value) for member in kind)
    return "N" if kind is int else "VALUE"


def parameters(command: Any) -> list[str]:
    """A table of the options and arguments."""
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        names = [*parameter.opts, *parameter.secondary_opts]
        if parameter.param_type_name == "argument":
            names = [parameter.metavar or parameter.name.upper()]
        help_text = " ".join((getattr(parameter, "help", None) or "").split())
        if parameter.required:
            help_text = f"{help_text} Required.".strip()
        default = parameter.default
        if isinstance(default, (str, int)) and not isinstance(default, bool) and default != "":
            help_text = f"{help_text} Default: `{getattr(default, 'value', default)}`.".strip()
        shown = ", ".join(f"`{name}`" for name in names)
        if parameter.param_type_name == "option" and not parameter.is_flag:
            metavar = parameter.metavar or kind_of(parameter)
            shown += f" `{metavar}`"
        rows.append(f"| {shown} | {help_text} |".replace(" |  |", " | |"))
    return ["| | |", "| --- | --- |", *rows] if rows else []


def text(command: Any) -> tuple[str, str]:
    """What a command's docstring says, and its example."""
    said = inspect.cleandoc(command.help or "").replace("\b\n", "")
    before, _, example = said.partition("For example:")
    return before.strip(), inspect.cleandoc(example.strip("\n"))


def reference() -> str:
    """The whole document."""
    lines = [INTRODUCTION]
    for path, command in commands(typer.main.get_command(build()), ("lattice",)):
        if len(path) == 1:
            continue
        said, example = text(command)
        lines += [f"## `{' '.join(path)}`\n", said + "\n"]
        if example:
            lines += ["```sh", example, "```\n"]
        if table := parameters(command):
            lines += [*table, ""]
    lines += ["## Exit status\n", "| status | meaning |", "| --- | --- |", "| 0 | done |"]
    lines += ["| 1 | an expectation failed, or an error without a status of its own |"]
    lines += ["| 2 | wrong usage |"]
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, LatticeError) and kind is not LatticeError
    ]
    for kind in sorted(kinds, key=lambda kind: kind.exit_code):
        summary = (inspect.getdoc(kind) or "").splitlines()[0].replace(":class:", "")
        lines.append(f"| {kind.exit_code} | `{kind.code}`: {summary} |")
    lines += [
        "| 70 | a defect of Lattice |",
        "| 130 | Ctrl-C |",
        "| 141 | whoever read the output has left |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
