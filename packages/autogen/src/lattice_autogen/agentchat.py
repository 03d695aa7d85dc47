"""``BaseChatAgent`` and teams under an identity: autogen-agentchat 0.7."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import os
from collections.abc import Mapping
from contextvars import copy_context
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar, Self

from autogen_agentchat.agents import BaseChatAgent
from autogen_core import CancellationToken
from autogen_core.code_executor import CodeBlock, CodeExecutor
from autogen_core.tools import FunctionTool
from autogen_ext.code_executors.local import LocalCommandLineCodeExecutor
from pydantic import BaseModel

from lattice_autogen._programs import command, confined, no_network, rebound
from lattice_autogen.adapter import Identified, Settings, current_agent
from lattice_sdk import LatticeAgent

__all__ = ["LatticeChatAgent", "LatticeCommandLineCodeExecutor", "LatticeMixin"]


class LatticeCommandLineCodeExecutor(LocalCommandLineCodeExecutor):
    """AutoGen's executor; its programs have the network of the agent that lets it run them.

    ``CodeExecutorAgent`` with an identity makes one of the ``LocalCommandLineCodeExecutor`` that it
    is given; a tool that executes code is given one.

    Args:
        environment: variables for the programs; the host's credentials are not among them.
        options: of ``LocalCommandLineCodeExecutor``.
    """

    component_provider_override = "lattice_autogen.agentchat.LatticeCommandLineCodeExecutor"
    lattice_network = True
    _environment: Mapping[str, str] = {}

    def __init__(self, *, environment: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._environment = dict(environment or {})

    async def _setup_functions(self, cancellation_token: CancellationToken) -> None:
        starts = _asyncio(current_agent(), self._environment)
        await rebound(super()._setup_functions, asyncio=starts)(cancellation_token)

    async def _execute_code_dont_check_setup(
        self, code_blocks: list[CodeBlock], cancellation_token: CancellationToken
    ) -> Any:
        starts = _asyncio(current_agent(), self._environment)
        execute = rebound(super()._execute_code_dont_check_setup, asyncio=starts)
        return await execute(code_blocks, cancellation_token)


class LatticeMixin(Identified):
    """Gives a chat agent or a team an identity: ``class Coder(LatticeMixin, AssistantAgent): ...``.

    ::

        async with Coder("coder", model_client, policy_preset="sandboxed") as coder:
            await coder.run(task="…")

    The identity is enrolled by ``async with``, or else with the first message, and ends with
    ``await close()``, with the block, or when the agent is garbage. Members of a team that have an
    identity of their own keep it; the others use the team's.

    Keyword arguments that name settings of :class:`lattice_sdk.LatticeAgent` are taken as these, or
    ``lattice={…}`` holds them all; ``agent_name`` is the agent's name when left out. They are in no
    component config: what is loaded from one takes its settings from the environment.

    Attributes:
        lattice_agent: the identity, which the agent's code and tools also get by
            :func:`lattice_autogen.current_agent`.

    Raises:
        ConfigurationError: a setting is wrong, or code would be executed with another network.
        LatticeError: on entering or the first message, there is no identity to be had.
    """

    _lattice_methods: ClassVar[tuple[str, ...]] = (
        "on_messages",
        "on_messages_stream",
        "run",
        "run_stream",
    )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Inherited, it would have a component that is loaded again be one without identity.
        if "component_provider_override" not in cls.__dict__:
            cls.component_provider_override = None  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = Settings.taken_from(kwargs)
        super().__init__(*args, **kwargs)
        if (executor := self.__dict__.get("_code_executor")) is not None:
            self.__dict__["_code_executor"] = confined(
                executor, LocalCommandLineCodeExecutor, LatticeCommandLineCodeExecutor
            )
        for tool in self._lattice_tools():
            executor = getattr(tool, "_executor", None)  # of PythonCodeExecutionTool
            if isinstance(executor, CodeExecutor) and not hasattr(executor, "lattice_network"):
                raise no_network(type(executor).__name__)
            if type(tool) is FunctionTool:
                tool.__class__ = _CarryingTool
        self._lattice_hold(settings)

    async def close(self) -> None:
        """Give the identity back, after what else the agent has to close."""
        try:
            close = getattr(super(), "close", None)  # teams have none
            if close is not None:
                await close()
        finally:
            await self.lattice_agent.aclose()

    def _lattice_tools(self) -> list[Any]:
        benches = self.__dict__.get("_workbench") or ()
        found = [tool for bench in benches for tool in getattr(bench, "_tools", ())]
        return [*(self.__dict__.get("_tools") or ()), *found]

    async def __aenter__(self) -> Self:
        await self._lattice_opened()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class LatticeChatAgent(LatticeMixin, BaseChatAgent):
    """``BaseChatAgent`` with an identity, for agents of one's own; see :class:`LatticeMixin`."""


class _CarryingTool(FunctionTool):
    """A tool whose function finds the caller's context variables also in the thread it runs in."""

    async def run(self, args: BaseModel, cancellation_token: CancellationToken) -> Any:
        if inspect.iscoroutinefunction(self._func):
            return await super().run(args, cancellation_token)
        twin = copy.copy(self)
        twin._func = functools.partial(copy_context().run, self._func)
        return await FunctionTool.run(twin, args, cancellation_token)


def _asyncio(agent: LatticeAgent, given: Mapping[str, str]) -> SimpleNamespace:
    """What AutoGen's code uses of :mod:`asyncio`, for the programs of an agent."""

    async def start(*argv: str, env: Mapping[str, str] | None = None, **options: Any) -> Any:
        line, environment = command(agent, argv, os.environ if env is None else env, given)
        return await asyncio.create_subprocess_exec(*line, env=environment, **options)

    return SimpleNamespace(
        create_subprocess_exec=start,
        create_task=asyncio.create_task,
        wait_for=asyncio.wait_for,
        subprocess=SimpleNamespace(PIPE=asyncio.subprocess.PIPE),
        TimeoutError=asyncio.TimeoutError,
        CancelledError=asyncio.CancelledError,
    )
