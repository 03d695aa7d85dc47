"""``ag2.Agent`` under an identity, by a plugin: ag2 from 1 on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from ag2 import Context, Middleware, Plugin
from ag2.events import BaseEvent, ModelResponse
from ag2.middleware.base import AgentTurn, BaseMiddleware
from ag2.tools import SandboxCodeTool, SandboxShellTool
from ag2.tools.sandbox import ExecResult
from ag2.tools.sandbox.factory import SingletonFactory
from ag2.tools.sandbox.local import LocalSandbox
from ag2.utils import AGENT_CONTEXT_DEPENDENCY_KEY

from lattice_autogen._programs import command
from lattice_autogen.adapter import Opener, Settings, acting, current_agent
from lattice_sdk import ConfigurationError

__all__ = ["LatticeEnvironment", "LatticePlugin"]


class LatticePlugin(Plugin):
    """Gives an agent an identity.

    ::

        async with LatticePlugin(policy_preset="sandboxed") as lattice:
            coder = Agent("coder", config=config, plugins=[lattice])
            await coder.ask("…")

    ``with`` does the same for blocking programs. Without a block the identity is enrolled with the
    first turn, and ends when plugin and agent are garbage. A plugin is one identity: agents share
    one only by sharing the plugin.

    Args:
        settings: of :class:`lattice_sdk.LatticeAgent`.

    Attributes:
        lattice_agent: the identity. Tools get it by :func:`lattice_autogen.current_agent`, and as
            the dependency ``lattice_agent``.

    Raises:
        ConfigurationError: a setting is wrong; with a turn: a tool would have the host's network.
        LatticeError: on entering or the first turn, there is no identity to be had.
    """

    def __init__(self, **settings: Any) -> None:
        self.lattice_agent = Settings.taken_from(settings).agent("")
        if settings:
            raise TypeError(f"no settings of an identity: {', '.join(sorted(settings))}")
        self._lattice_opener = Opener(self.lattice_agent)
        super().__init__(
            middleware=[Middleware(_UnderIdentity, opener=self._lattice_opener)],
            dependencies={"lattice_agent": self.lattice_agent},
        )

    def close(self) -> None:
        """Give the identity back. Again without effect."""
        self.lattice_agent.close()

    async def aclose(self) -> None:
        """:meth:`close`, awaited."""
        await self.lattice_agent.aclose()

    def __enter__(self) -> Self:
        self.lattice_agent.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await self._lattice_opener.opened()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class _UnderIdentity(BaseMiddleware):
    """Runs a turn, and all that it calls, under the identity."""

    def __init__(self, event: BaseEvent, context: Context, opener: Opener) -> None:
        super().__init__(event, context)
        self._opener = opener

    async def on_turn(
        self, call_next: AgentTurn, event: BaseEvent, context: Context
    ) -> ModelResponse:
        _refuse_host(context)
        with acting(await self._opener.opened()):
            return await call_next(event, context)


class _Sandbox(LocalSandbox):
    def __init__(self, *args: Any, env_vars: Mapping[str, str] | None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._given = dict(env_vars or {})

    async def exec(
        self,
        argv: list[str],
        *,
        env: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> ExecResult:
        given = {**self._given, **(env or {})}
        line, environment = command(current_agent(), argv, os.environ, given)
        # What is not to be there is empty: LocalSandbox only adds to the host's environment.
        absent = dict.fromkeys(os.environ.keys() - environment.keys(), "")
        return await super().exec(line, env={**absent, **environment}, timeout=timeout)


class LatticeEnvironment(SingletonFactory):
    """Where ``SandboxShellTool``, ``SandboxCodeTool`` and skills run an agent's programs.

    On this machine, as ``LocalEnvironment`` does, with the network of the agent whose turn it is.

    Args:
        path: working directory; a temporary one when left out.
        env_vars: variables for the programs; the host's credentials are not among them.
        options: of ``LocalEnvironment``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        env_vars: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(_Sandbox(path, env_vars=env_vars, **options))

    async def aclose(self) -> None:
        """Remove the working directory, if it is a temporary one. Again without effect."""
        await self.sandbox.aclose()


def _refuse_host(context: Context) -> None:
    """Raise if a tool of the agent's would run programs with the host's network."""
    agent = context.dependencies.get(AGENT_CONTEXT_DEPENDENCY_KEY)
    adapter: Any
    for tool in getattr(agent, "tools", ()):
        if isinstance(tool, SandboxShellTool):
            adapter = tool._adapter
        elif isinstance(tool, SandboxCodeTool):
            adapter = tool.environment
        else:
            continue
        sandbox = getattr(getattr(adapter, "_factory", None), "sandbox", None)
        if isinstance(sandbox, LocalSandbox) and not isinstance(sandbox, _Sandbox):
            raise ConfigurationError(
                f"the programs of the tool {tool.name} would not have the agent's network",
                hint=f"Make it {type(tool).__name__}(LatticeEnvironment(…))",
            )
