"""``ag2.Agent`` under an identity, by a plugin: ag2 from 1 on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from ag2 import Context, Middleware, Plugin
from ag2.events import BaseEvent, ModelResponse
from ag2.middleware.base import AgentTurn, BaseMiddleware
from ag2.tools.sandbox import ExecResult, local

from lattice_autogen._programs import command, rebound
from lattice_autogen.adapter import Opener, Settings, acting, current_agent
from lattice_sdk import IdentityClosed

__all__ = ["LatticePlugin"]


class LatticePlugin(Plugin):
    """Gives an agent an identity.

    ::

        async with LatticePlugin(policy_preset="sandboxed") as lattice:
            coder = Agent("coder", config=config, plugins=[lattice])
            await coder.ask("…")

    ``with`` does the same for blocking programs. Without a block the identity is enrolled with the
    first turn, and ends when plugin and agent are garbage. A plugin is one identity: agents share
    one only by sharing the plugin. Programs that shell, code and skill tools start on this machine
    in a turn have the agent's network.

    Args:
        settings: of :class:`lattice_sdk.LatticeAgent`.

    Attributes:
        lattice_agent: the identity. Tools get it by :func:`lattice_autogen.current_agent`, and as
            the dependency ``lattice_agent``.

    Raises:
        ConfigurationError: a setting is wrong.
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
        with acting(await self._opener.opened()):
            return await call_next(event, context)


def _run_subprocess(
    argv: list[str], *, env: Mapping[str, str] | None = None, **options: Any
) -> ExecResult:
    """AutoGen's own; in the turn of an agent with an identity, with that agent's network."""
    try:
        agent = current_agent()
    except IdentityClosed:
        return _on_host(argv, env=env, **options)
    line, environment = command(agent, argv, os.environ, env)
    bare = SimpleNamespace(environ={})  # which AutoGen's adds the environment to
    return rebound(_on_host, os=bare)(line, env=environment, **options)


# The one place in which LocalSandbox, and so every shell, code and skill tool that runs programs on
# this machine, starts them. No middleware sees which program a tool starts.
_on_host: Callable[..., ExecResult] = local._run_subprocess
if "_run_subprocess" not in local.LocalSandbox.exec.__code__.co_names:
    raise ImportError(
        "LocalSandbox of the installed ag2 starts programs in a way that lattice_autogen does not "
        "know, so they cannot be given the agent's network. Install a version that it supports"
    )
local._run_subprocess = _run_subprocess
