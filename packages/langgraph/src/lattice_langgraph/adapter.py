"""A StateGraph's life under an identity: enter, run the graph as ever, leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.config import get_config
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel

from lattice_sdk import IdentityClosed, LatticeAgent

if TYPE_CHECKING:
    from langgraph.prebuilt import ToolRuntime

__all__ = ["AGENT_KEY", "IdentifiedGraph", "bind", "current_agent", "lattice_lifespan"]

# Where nodes find their agent in ``config["configurable"]``. So begin the keys of LangGraph itself,
# which it leaves out of checkpoints, traces and streams (langgraph.pregel.debug.rm_pregel_keys).
AGENT_KEY = "__pregel_lattice_agent"

StateT = TypeVar("StateT")
_agent: ContextVar[LatticeAgent | None] = ContextVar("lattice_agent", default=None)


def current_agent(
    config: RunnableConfig | ToolRuntime[Any, Any] | None = None,
) -> LatticeAgent:
    """The agent of the graph that runs the calling node or tool.

    Right in every thread and task that LangGraph starts. Code that starts threads of its own asks
    before it does, or passes on the node's ``config``.

    Args:
        config: the node's, or the runtime of a tool, where that is at hand.

    Raises:
        IdentityClosed: no graph with an identity runs the caller.
    """
    if config is not None:
        own = config if isinstance(config, dict) else config.config
        found = (own.get("configurable") or {}).get(AGENT_KEY)
    else:
        found = _agent.get() or _from_config()
    if found is None:
        raise IdentityClosed(
            "no identity here: this code is not run by a graph that lattice_lifespan gave",
            hint="Call current_agent() in a node or tool of that graph",
        )
    return cast(LatticeAgent, found)


def _from_config() -> Any:
    try:
        return get_config().get("configurable", {}).get(AGENT_KEY)
    except RuntimeError:
        return None  # not in a graph at all


class IdentifiedGraph(Pregel[Any, Any, Any, Any]):
    """A compiled graph whose nodes have an agent; otherwise the graph that it was.

    Everything that runs nodes goes through ``stream`` or ``astream`` (langgraph.pregel.main), most
    of it by ``invoke`` or ``ainvoke``, which make the agent the current one once for all steps.

    Attributes:
        lattice_agent: the identity that its nodes use.
    """

    lattice_agent: LatticeAgent

    def invoke(
        self,
        input: Any,  # noqa: A002 - the name is LangGraph's
        config: RunnableConfig | None = None,
        **options: Any,
    ) -> Any:
        """See :meth:`Pregel.invoke`."""
        token = _agent.set(self.lattice_agent)
        try:
            return super().invoke(input, config, **options)
        finally:
            _agent.reset(token)

    async def ainvoke(
        self,
        input: Any,  # noqa: A002 - the name is LangGraph's
        config: RunnableConfig | None = None,
        **options: Any,
    ) -> Any:
        """See :meth:`Pregel.ainvoke`."""
        token = _agent.set(self.lattice_agent)
        try:
            return await super().ainvoke(input, config, **options)
        finally:
            _agent.reset(token)

    def stream(
        self,
        input: Any,  # noqa: A002 - the name is LangGraph's
        config: RunnableConfig | None = None,
        **options: Any,
    ) -> Any:
        """See :meth:`Pregel.stream`."""
        steps = super().stream(input, self._under(config), **options)
        return steps if self._is_current() else self._steps(steps)

    def astream(
        self,
        input: Any,  # noqa: A002 - the name is LangGraph's
        config: RunnableConfig | None = None,
        **options: Any,
    ) -> Any:
        """See :meth:`Pregel.astream`."""
        steps = super().astream(input, self._under(config), **options)
        return steps if self._is_current() else self._asteps(steps)

    def _is_current(self) -> bool:
        return _agent.get() is self.lattice_agent

    def _under(self, config: RunnableConfig | None) -> RunnableConfig:
        # The caller may be a node of another graph that hands its own config on. Where it hands on
        # none, the run takes the graph's, or the calling node's (langgraph ensure_config): they
        # have the thread, and what makes this a subgraph.
        places = (config, self.config, var_child_runnable_config.get())
        own = next((found for one in places if (found := (one or {}).get("configurable"))), {})
        return {**(config or {}), "configurable": {**own, AGENT_KEY: self.lattice_agent}}

    def _steps(self, steps: Iterator[Any]) -> Iterator[Any]:
        # Only during a step: what the caller does between two steps is not the graph's.
        try:
            while True:
                token = _agent.set(self.lattice_agent)
                try:
                    chunk = next(steps)
                except StopIteration:
                    return
                finally:
                    _agent.reset(token)
                yield chunk
        finally:
            if close := getattr(steps, "close", None):
                close()

    async def _asteps(self, steps: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            while True:
                token = _agent.set(self.lattice_agent)
                try:
                    chunk = await anext(steps)
                except StopAsyncIteration:
                    return
                finally:
                    _agent.reset(token)
                yield chunk
        finally:
            if aclose := getattr(steps, "aclose", None):
                await aclose()


class lattice_lifespan(Generic[StateT]):  # noqa: N801 - used as a function, as contextlib's are
    """Give a graph an identity for the length of a block.

    ::

        async with lattice_lifespan(graph, policy_preset="sandboxed") as g:
            await g.ainvoke({"question": "…"})

    ``with`` does the same for blocking programs. In nodes and tools :func:`current_agent` is the
    agent; a node that takes its config has it in ``config["configurable"][AGENT_KEY]`` too.

    Args:
        graph: a ``StateGraph``, which is compiled as it is, or a compiled graph (an ``@entrypoint``
            is one), which stays as it is: the block gets a copy.
        settings: of :class:`lattice_sdk.LatticeAgent`; ``agent_name`` is the graph's name when
            left out.

    Raises:
        LatticeError: on entering, when there is no identity to be had; nothing is left behind.
        TypeError: ``graph`` is neither.
    """

    def __init__(self, graph: StateGraph[Any, Any, Any, Any] | Any, **settings: Any) -> None:
        self._compiled = compiled(graph)
        if settings.get("agent_name") is None:
            settings["agent_name"] = self._compiled.get_name()
        self._agent = LatticeAgent(**settings)

    def __enter__(self) -> IdentifiedGraph:
        self._agent.open()
        return self._bound()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._agent.close()

    async def __aenter__(self) -> IdentifiedGraph:
        await self._agent.aopen()
        return self._bound()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._agent.aclose()

    def _bound(self) -> IdentifiedGraph:
        return bind(self._compiled, self._agent)


def compiled(graph: StateGraph[Any, Any, Any, Any] | Any) -> Pregel[Any, Any, Any, Any]:
    """The graph, compiled if it is not yet.

    Raises:
        TypeError: it is no graph.
    """
    if isinstance(graph, StateGraph):
        return graph.compile()
    if not isinstance(graph, Pregel):
        raise TypeError(f"a StateGraph or a compiled one is needed, not {type(graph).__name__}")
    return graph


def bind(graph: Pregel[Any, Any, Any, Any], agent: LatticeAgent) -> IdentifiedGraph:
    """A copy of a compiled graph whose nodes use ``agent``, which its owner opens and closes."""
    kind = type(graph)
    # The agent is in the class, as graphs copy themselves by calling their class with what is in
    # the instance.
    bases = (kind,) if issubclass(kind, IdentifiedGraph) else (IdentifiedGraph, kind)
    bound = type(kind.__name__, bases, {"lattice_agent": agent, "__module__": __name__})
    copy = graph.copy()
    copy.__class__ = bound
    return cast(IdentifiedGraph, copy)
