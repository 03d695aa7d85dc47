"""How the CLI is started under an identity: in a network of its own, or with the tunnel's proxy."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from lattice_sdk import LatticeAgent

__all__ = ["CREDENTIALS", "Launch", "bundled_cli", "find_cli", "launch"]

# With these the CLI, which does what its model says, could enroll identities of its own.
CREDENTIALS = ("LATTICE_TOKEN", "LATTICE_TOKEN_FILE")
_WITH_PARENT = Path(__file__).with_name("with_parent.py")


@dataclass(frozen=True)
class Launch:
    """What to start.

    Attributes:
        command: what to execute, with the CLI's arguments after it.
        environment: to lay over the environment; without a secret, as every process of this user
            can read it.
        secret_environment: for the CLI's settings, from where it and what it starts have it; empty
            where the CLI needs no proxy.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    secret_environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def launch(agent: LatticeAgent, cli: str) -> Launch:
    """Decide how a CLI is started: isolated where the agent can do that, else over its proxy.

    Either way it ends when this process is killed. The SDK's own way, the end of its input, leaves
    it to work until its turn is over.

    Args:
        agent: an open one.
        cli: the CLI's executable.

    Raises:
        IdentityClosed: the agent is not open.
        IdentityExpired: its life is over.
    """
    if agent.isolation == "namespace":
        return Launch(command=tuple(agent.wrap([cli])))
    proxy = agent.proxy_env()
    return Launch(
        command=(sys.executable, "-I", "-S", str(_WITH_PARENT), str(os.getpid()), cli),
        # A CLI that did not read the settings is refused by the proxy, instead of passing it by.
        environment={name: _without_password(value) for name, value in proxy.items()},
        secret_environment=proxy,
    )


def bundled_cli() -> str | None:
    """The CLI that the SDK's wheel brings along."""
    sdk = find_spec("claude_agent_sdk")
    if sdk is None or sdk.origin is None:
        return None
    found = Path(sdk.origin).parent / "_bundled" / "claude"
    return str(found) if found.is_file() else None


def find_cli(given: str | Path | None, directory: str | Path | None) -> str:
    """The CLI that the SDK starts.

    Args:
        given: ``cli_path`` of its options.
        directory: ``cwd`` of its options.

    Raises:
        CLINotFoundError: it is not there, as the SDK says it.
    """
    if given is None:
        found = bundled_cli() or shutil.which("claude")
    elif os.path.dirname(given):
        found = str(given) if (Path(directory or "") / given).is_file() else None
    else:
        found = shutil.which(given)
    if found is None:
        from claude_agent_sdk import CLINotFoundError

        raise CLINotFoundError(
            f"Claude Code not found at: {given}"
            if given is not None
            else "Claude Code not found: not in the claude-agent-sdk wheel, and not on PATH. "
            "Install it, or name it: ClaudeAgentOptions(cli_path=…)"
        )
    return found


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if not parts.scheme or "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
