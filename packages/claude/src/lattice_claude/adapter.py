"""The Claude Agent SDK under an identity: options, client and query as ever, in its network."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, Message, query

from lattice_claude.launch import CREDENTIALS, find_cli, launch
from lattice_claude.settings import PrivateSettings, with_environment
from lattice_sdk import ConfigurationError, IdentityClosed, LatticeAgent

__all__ = [
    "IdentifiedClient",
    "IdentifiedOptions",
    "claude_options",
    "current_agent",
    "lattice_claude_client",
    "lattice_query",
]

DEFAULT_NAME = "claude"
# Executes the words of COMMAND with the arguments that it gets. The SDK starts one file.
STARTER = Path(__file__).with_name("start.sh")
COMMAND = "LATTICE_CLAUDE_COMMAND"

_agent: ContextVar[LatticeAgent | None] = ContextVar("lattice_claude_agent", default=None)


def current_agent() -> LatticeAgent:
    """The agent of the conversation that runs the calling tool, hook or ``can_use_tool``.

    Raises:
        IdentityClosed: no client or query with an identity runs the caller.
    """
    found = _agent.get()
    if found is None:
        raise IdentityClosed(
            "no identity here: this code is not run by lattice_claude_client or lattice_query",
            hint="Call current_agent() in a tool, a hook or can_use_tool of theirs",
        )
    return found


@dataclass
class IdentifiedOptions(ClaudeAgentOptions):
    """Options whose CLI starts under an identity; otherwise the options that they were.

    They keep the agent: forgotten without being closed, it is closed once they are forgotten too.

    Attributes:
        lattice_agent: whose identity it is.
    """

    lattice_agent: LatticeAgent | None = field(default=None, compare=False)
    lattice_settings: PrivateSettings | None = field(default=None, repr=False, compare=False)


def claude_options(
    agent: LatticeAgent, options: ClaudeAgentOptions | None = None
) -> IdentifiedOptions:
    """A copy of ``options`` whose CLI, and what that starts, has the network of ``agent``.

    Args:
        agent: an open one, which its owner closes.
        options: as for the SDK.

    Raises:
        IdentityClosed: the agent is not open.
        IdentityExpired: its life is over.
        ConfigurationError: the options have an identity already, their settings cannot be read, or
            they name another user.
        CLINotFoundError: there is no CLI.
    """
    given = options or ClaudeAgentOptions()
    if isinstance(given, IdentifiedOptions):
        raise ConfigurationError(
            "these options have an identity already",
            hint="Take the options that claude_options was given",
        )
    if given.user is not None:
        raise ConfigurationError(
            f"the CLI cannot be started as {given.user}: the identity is this user's",
            hint="Leave out ClaudeAgentOptions(user=…) and start the whole program as that user",
        )
    values: dict[str, Any] = {one.name: getattr(given, one.name) for one in fields(given)}
    # Empty is as unset; a variable cannot be taken out of what the SDK hands on.
    values |= {"lattice_agent": agent, "env": {**dict.fromkeys(CREDENTIALS, ""), **given.env}}
    way = launch(agent, find_cli(given.cli_path, given.cwd))
    values["env"] |= {**way.environment, COMMAND: shlex.join(way.command)}
    values["cli_path"] = STARTER
    if way.secret_environment:
        _add_settings(values, way.secret_environment)
    return IdentifiedOptions(**values)


def _add_settings(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    arguments = dict(values["extra_args"])
    # The CLI takes the last one.
    given = arguments.pop("settings", None) or values["settings"]
    # Left to the SDK, the sandbox's settings and all others would be in the CLI's arguments.
    sandbox = {} if values["sandbox"] is None else {"sandbox": values["sandbox"]}
    private = with_environment(given, values["cwd"], environment, **sandbox)
    values |= {
        "extra_args": arguments,
        "settings": private.path,
        "sandbox": None,
        "lattice_settings": private,
    }


class IdentifiedClient(ClaudeSDKClient):
    """A client whose CLI runs under an identity; otherwise the client that it was.

    Args:
        agent: an open one, which its owner closes.
        options: as for the SDK.

    Attributes:
        lattice_agent: whose identity it is.
    """

    def __init__(self, agent: LatticeAgent, options: ClaudeAgentOptions | None = None) -> None:
        super().__init__(claude_options(agent, options))
        self.lattice_agent = agent

    async def connect(self, prompt: str | AsyncIterable[dict[str, Any]] | None = None) -> None:
        """See :meth:`ClaudeSDKClient.connect`."""
        # The SDK calls tools and hooks from tasks that it starts here.
        with _as_current(self.lattice_agent):
            await super().connect(prompt)


@asynccontextmanager
async def lattice_claude_client(
    options: ClaudeAgentOptions | None = None, **settings: Any
) -> AsyncIterator[IdentifiedClient]:
    """A connected client under an identity for the length of a block.

    ::

        async with lattice_claude_client(options, policy_preset="sandboxed") as client:
            await client.query("What is new?")

    In its tools, hooks and ``can_use_tool`` :func:`current_agent` is the agent.

    Args:
        options: as for :class:`ClaudeSDKClient`.
        settings: of :class:`lattice_sdk.LatticeAgent`.

    Raises:
        LatticeError: on entering, when there is no identity to be had; nothing is left behind.
    """
    async with _make_agent(settings) as agent:
        client = IdentifiedClient(agent, options)
        async with client:
            yield client


async def lattice_query(
    *,
    prompt: str | AsyncIterable[dict[str, Any]],
    options: ClaudeAgentOptions | None = None,
    **settings: Any,
) -> AsyncIterator[Message]:
    """The SDK's ``query`` under an identity that begins and ends with it.

    Args:
        prompt: as for ``query``.
        options: as for ``query``.
        settings: of :class:`lattice_sdk.LatticeAgent`.

    Raises:
        LatticeError: at the first step, when there is no identity to be had.
    """
    async with _make_agent(settings) as agent:
        messages: Any = query(prompt=prompt, options=claude_options(agent, options))
        async with aclosing(messages):
            while True:
                # Only during a step: what the caller does between two is not the query's.
                with _as_current(agent):
                    try:
                        message = await anext(messages)
                    except StopAsyncIteration:
                        return
                yield message


def _make_agent(settings: dict[str, Any]) -> LatticeAgent:
    if settings.get("agent_name") is None:
        settings["agent_name"] = DEFAULT_NAME
    return LatticeAgent(**settings)


@contextmanager
def _as_current(agent: LatticeAgent) -> Iterator[None]:
    token = _agent.set(agent)
    try:
        yield
    finally:
        _agent.reset(token)
