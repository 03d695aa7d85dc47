"""How the CLI is started under an identity: in a network of its own, or with the tunnel's proxy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import claude_agent_sdk

from lattice_sdk import ConfigurationError

if TYPE_CHECKING:
    from lattice_sdk import LatticeAgent

__all__ = ["Launch", "bundled_cli", "launch", "sdk_cli"]

# What ``agent.isolation`` says when ``agent.wrap`` runs programs in a network namespace.
NAMESPACE = "namespace"
# With these the CLI, which does what its model says, could enroll identities of its own.
CREDENTIALS = ("LATTICE_TOKEN", "LATTICE_TOKEN_FILE")


@dataclass(frozen=True)
class Launch:
    """What to start.

    Attributes:
        command: what to execute, with the CLI's arguments after it; empty where it is the CLI
            itself.
        environment: to lay over the environment; without a secret, as every process of this user
            can read it.
        secret_environment: for the CLI's settings, from where it and what it starts have it; empty
            where the CLI needs no proxy.
    """

    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secret_environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def launch(agent: LatticeAgent, cli: Callable[[], str]) -> Launch:
    """Decide how a CLI is started: isolated where the agent can do that, else over its proxy.

    Args:
        agent: an open one.
        cli: finds the CLI's executable, should that be needed.

    Raises:
        IdentityClosed: the agent is not open.
        IdentityExpired: its life is over.
    """
    wrap = getattr(agent, "wrap", None)
    if wrap is not None and getattr(agent, "isolation", None) == NAMESPACE:
        return Launch(command=tuple(wrap([cli()])))
    proxy = agent.proxy_env()
    # A CLI that did not read the settings would be refused by the proxy, instead of passing it by.
    return Launch(
        environment={name: _without_password(value) for name, value in proxy.items()},
        secret_environment=proxy,
    )


def bundled_cli() -> str | None:
    """The CLI that the SDK's wheel brings along."""
    found = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
    return str(found) if found.is_file() else None


def sdk_cli() -> str:
    """The CLI that the SDK starts when it is told nothing else.

    Raises:
        ConfigurationError: there is none.
    """
    found = bundled_cli() or shutil.which("claude")
    if found is None:
        raise ConfigurationError(
            "there is no claude command: not in the wheel of claude-agent-sdk, and not on PATH",
            hint="Install it, or name it with ClaudeAgentOptions(cli_path=…)",
        )
    return found


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if not parts.scheme or "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
