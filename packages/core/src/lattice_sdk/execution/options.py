"""The command line of ``lattice exec``, read without the command-line library, which takes time.

``lattice exec --help`` and the documentation come from :mod:`lattice_sdk.cli.exec`, which has the
same options; a test compares the two.
"""

from __future__ import annotations

import re

from lattice_sdk import destinations

TYPE_CHECKING = False  # as typing has it, without the time that importing that takes
if TYPE_CHECKING:
    from typing import Any

SINGLE = {
    "--name": "name",
    "--type": "agent_type",
    "--preset": "preset",
    "--ttl": "ttl",
    "--workspace": "workspace",
    "-w": "workspace",
    "--backend": "backend",
    "--isolation": "isolation",
    "--server": "server",
    "--token": "token",
    "--token-file": "token_file",
    "--ca-file": "ca_file",
}
REPEATED = {"--allow": "allow", "--forward": "forward"}
SWITCHES = {"--unix-sockets": "unix_sockets"}
HELP = ("--help", "-h")
DEFAULT_NAME, ALLOWING_PRESET = "exec", "isolated"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class UsageError(Exception):
    """The command line is wrong; a sentence says what."""


class HelpWanted(Exception):  # noqa: N818 - no error
    """The help was asked for."""


class Options:
    """What ``lattice exec`` was called with; a setting is ``None`` where it was not given.

    Attributes:
        command: the program and its arguments.
        allow: destinations, as the API has them.
        forward: by port of the overlay address, where it leads to on this machine.
        unix_sockets: whether the program may make sockets of the Unix family.
    """

    name: str | None = None
    agent_type: str | None = None
    preset: str | None = None
    ttl: str | None = None
    workspace: str | None = None
    backend: str | None = None
    isolation: str | None = None
    server: str | None = None
    token: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    unix_sockets: bool = False

    def __init__(self) -> None:
        self.command: list[str] = []
        self.allow: list[dict[str, Any]] = []
        self.forward: dict[int, str] = {}

    @property
    def agent_name(self) -> str:
        """What the agent is called: the program's own name where none was given."""
        if self.name is not None:
            return self.name
        own = self.command[0].rpartition("/")[2]
        return own if _NAME.fullmatch(own) else DEFAULT_NAME

    @property
    def policy_preset(self) -> str | None:
        """The preset; with destinations and no other word, the one that is made of them.

        Without either it is the control plane's to say: what the token names, else ``sandboxed``.
        """
        return self.preset or (ALLOWING_PRESET if self.allow else None)

    @property
    def asks(self) -> bool:
        """Whether an identity of a certain kind was asked for."""
        return bool(self.preset or self.allow or self.forward or self.ttl or self.agent_type)


def parse(words: list[str]) -> Options:
    """Read what follows ``lattice exec``.

    Raises:
        UsageError: it is wrong.
        HelpWanted: the help was asked for.
    """
    options, left = Options(), list(words)
    while left and left[0].startswith("-") and left[0] != "--":
        word = left.pop(0)
        name, separator, value = word.partition("=")
        if name in HELP:
            raise HelpWanted
        if name in SWITCHES and not separator:
            setattr(options, SWITCHES[name], True)
            continue
        if name not in SINGLE and name not in REPEATED:
            raise UsageError(f"there is no option {name}")
        if not separator:
            if not left:
                raise UsageError(f"the option {name} wants a value")
            value = left.pop(0)
        if name in SINGLE:
            setattr(options, SINGLE[name], value)
        else:
            _add(options, name, value)
    if left[:1] == ["--"]:
        del left[0]
    if not left:
        raise UsageError("no program is named: lattice exec [OPTIONS] -- PROGRAM [ARGUMENTS]")
    options.command = left
    return options


def _add(options: Options, name: str, value: str) -> None:
    try:
        if name == "--allow":
            options.allow.append(destinations.parse_destination(value))
        else:
            port, target = destinations.parse_forward(value)
            options.forward[port] = target
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None
