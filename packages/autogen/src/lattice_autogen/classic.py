"""``ConversableAgent`` under an identity: ag2 before 1, pyautogen before 0.10."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar, Self

from autogen import ConversableAgent
from autogen.code_utils import execute_code, in_docker_container
from autogen.coding import LocalCommandLineCodeExecutor
from autogen.coding.base import CodeBlock, CommandLineCodeResult

from lattice_autogen._programs import command, confined, no_network, rebound
from lattice_autogen.adapter import Identified, Settings, acting, current_agent
from lattice_sdk import LatticeAgent

GroupToolExecutor: type[Any] | tuple[()]
try:
    from autogen.agentchat.group.group_tool_executor import GroupToolExecutor
except ImportError:  # group chats came with 0.9
    GroupToolExecutor = ()

__all__ = ["LatticeCommandLineCodeExecutor", "LatticeConversableAgent", "LatticeMixin"]


class LatticeCommandLineCodeExecutor(LocalCommandLineCodeExecutor):
    """AutoGen's executor; its programs have the network of the agent that lets it run them.

    Agents with an identity make one of the ``LocalCommandLineCodeExecutor`` that they are given.

    Args:
        environment: variables for the programs; the host's credentials are not among them.
        options: of ``LocalCommandLineCodeExecutor``.
    """

    lattice_network = True
    _environment: Mapping[str, str] = {}

    def __init__(self, *, environment: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._environment = dict(environment or {})

    def _setup_functions(self) -> None:
        starts = _subprocess(current_agent(), self._environment)
        rebound(super()._setup_functions, subprocess=starts)()

    def _execute_code_dont_check_setup(self, code_blocks: list[CodeBlock]) -> CommandLineCodeResult:
        starts = _subprocess(current_agent(), self._environment)
        return rebound(super()._execute_code_dont_check_setup, subprocess=starts)(code_blocks)


class LatticeMixin(Identified):
    """Gives an agent class an identity: ``class Coder(LatticeMixin, AssistantAgent): ...``.

    The identity is enrolled when the agent is made, and ends with ``close()``, with ``with`` or
    ``async with``, or when the agent is garbage. Keyword arguments that name settings of
    :class:`lattice_sdk.LatticeAgent` are taken as these, or ``lattice={…}`` holds them all;
    ``agent_name`` is the agent's name when left out. A copy enrolls anew.

    Attributes:
        lattice_agent: the identity, which reply functions and tools also get by
            :func:`lattice_autogen.current_agent`.

    Raises:
        ConfigurationError: a setting is wrong, or code would be executed with another network.
        LatticeError: there is no identity to be had; nothing is left behind.
    """

    _lattice_methods: ClassVar[tuple[str, ...]] = (
        "generate_reply",
        "a_generate_reply",
        "execute_function",
        "a_execute_function",
    )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = _all_or_nothing(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = Settings.taken_from(kwargs)
        super().__init__(*args, **kwargs)
        self._lattice_confine()
        self._lattice_hold(settings)

    def close(self) -> None:
        """Give the identity back. Again without effect."""
        self.lattice_agent.close()

    async def aclose(self) -> None:
        """:meth:`close`, awaited."""
        await self.lattice_agent.aclose()

    def run_code(self, code: str, **kwargs: Any) -> tuple[int, str, str | None]:
        """See :meth:`ConversableAgent.run_code`."""
        _refuse_docker(kwargs)
        starts = _subprocess(self.lattice_agent, {})
        return rebound(execute_code, subprocess=starts)(code, **kwargs)

    def generate_reply(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`ConversableAgent.generate_reply`."""
        _serve_callers(getattr(self, "_group_manager", None))
        return super().generate_reply(*args, **kwargs)  # type: ignore[misc]

    async def a_generate_reply(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`ConversableAgent.a_generate_reply`."""
        _serve_callers(getattr(self, "_group_manager", None))
        return await super().a_generate_reply(*args, **kwargs)  # type: ignore[misc]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _lattice_hold(self, settings: Settings) -> None:
        super()._lattice_hold(settings)
        self.lattice_agent.open()

    def _lattice_confine(self) -> None:
        executor = self.__dict__.get("_code_executor")
        if executor is not None:
            self.__dict__["_code_executor"] = confined(
                executor, LocalCommandLineCodeExecutor, LatticeCommandLineCodeExecutor
            )
        else:
            _refuse_docker(self.__dict__.get("_code_execution_config") or {})


class LatticeConversableAgent(LatticeMixin, ConversableAgent):
    """A ``ConversableAgent`` with an identity of its own; see :class:`LatticeMixin`.

    ::

        with LatticeConversableAgent("coder", llm_config=False, policy_preset="sandboxed") as coder:
            coder.initiate_chat(other, message="…")
    """


def _all_or_nothing(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor; where it fails, the identity that it may have enrolled is given back."""

    @functools.wraps(init)
    def run(self: LatticeMixin, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except BaseException:
            if "lattice_agent" in self.__dict__:
                self.lattice_agent.close()
            raise

    return run


def _subprocess(agent: LatticeAgent, given: Mapping[str, str]) -> SimpleNamespace:
    """What AutoGen's code uses of :mod:`subprocess`, for the programs of an agent."""

    def run(argv: list[str], *, env: Mapping[str, str] | None = None, **options: Any) -> Any:
        line, environment = command(agent, argv, os.environ if env is None else env, given)
        return subprocess.run(line, env=environment, **options)

    return SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)


def _refuse_docker(config: Mapping[str, Any]) -> None:
    if config.get("use_docker") and not in_docker_container():
        raise no_network("Docker")


def _serve_callers(manager: Any) -> None:
    """Have a group's tools run under the identity of the agent that calls them.

    In ``initiate_group_chat`` an agent of AutoGen's own executes the tools of all members.
    """
    chat = getattr(manager, "groupchat", None)
    for member in getattr(chat, "agents", ()):
        if isinstance(member, GroupToolExecutor) and "generate_reply" not in member.__dict__:
            for name in ("generate_reply", "a_generate_reply"):
                setattr(member, name, _as_caller(chat, getattr(member, name)))


def _as_caller(chat: Any, reply: Callable[..., Any]) -> Callable[..., Any]:
    def caller() -> AbstractContextManager[None]:
        agent = chat.agent_by_name(chat.messages[-1].get("name"))
        return acting(agent.lattice_agent) if isinstance(agent, LatticeMixin) else nullcontext()

    run: Callable[..., Any]
    if inspect.iscoroutinefunction(reply):

        async def run(*args: Any, **kwargs: Any) -> Any:
            with caller():
                return await reply(*args, **kwargs)

    else:

        def run(*args: Any, **kwargs: Any) -> Any:
            with caller():
                return reply(*args, **kwargs)

    return run
