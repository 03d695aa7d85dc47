"""For LangGraph Server: identities for as long as the server runs, and graphs that use them.

``langgraph.json`` names a file for the graphs and one for the app, ``{"graphs": {"research":
"./agent.py:graph"}, "http": {"app": "./agent.py:app"}}``::

    app = Starlette(lifespan=server_lifespan({"research": {"policy_preset": "sandboxed"}}))
    graph = server_graph(builder, "research")
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.graph import StateGraph

from lattice_langgraph.adapter import IdentifiedGraph, bind, compiled
from lattice_sdk import IdentityClosed, LatticeAgent

__all__ = ["server_agent", "server_graph", "server_lifespan"]

START_TIMEOUT = 30.0  # seconds that a run waits for the server to have started

# The server loads both files as modules of their own, twice where it is one file: what app and
# graphs have in common can only be here. The identities are their lifespan's.
_agents: dict[str, concurrent.futures.Future[LatticeAgent]] = {}


def server_lifespan(
    identities: Mapping[str, Mapping[str, Any]],
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """A Starlette lifespan that holds identities while the server runs.

    For an app with a lifespan of its own::

        @asynccontextmanager
        async def lifespan(app):
            async with server_lifespan({"research": {}})(app), other_things():
                yield

    Args:
        identities: by a name for :func:`server_graph`, the settings of
            :class:`lattice_sdk.LatticeAgent`; ``agent_name`` is that name when left out.

    Raises:
        LatticeError: at the start of the server, when there is no identity to be had; the server
            does not start then, and nothing is left behind.
    """
    for name in identities:
        _agents.setdefault(name, concurrent.futures.Future())

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for name, settings in identities.items():
                agent = LatticeAgent(**{"agent_name": name, **settings})
                await stack.enter_async_context(agent)
                if _agents[name].done():  # of an app that has ended
                    _agents[name] = concurrent.futures.Future()
                _agents[name].set_result(agent)
            yield

    return lifespan


def server_graph(
    graph: StateGraph[Any, Any, Any, Any] | Any, name: str
) -> Callable[[RunnableConfig], Awaitable[IdentifiedGraph]]:
    """A graph factory for ``langgraph.json``: the graph, under an identity of the server.

    Args:
        graph: a ``StateGraph`` or a compiled graph.
        name: of the identity, as :func:`server_lifespan` has it. Graphs may share one.

    Raises:
        TypeError: ``graph`` is neither.
    """
    bare = compiled(graph)

    async def factory(config: RunnableConfig) -> IdentifiedGraph:
        place = _place(name)
        # The server takes up what it was doing when it ended before its app has started.
        waiting = asyncio.shield(asyncio.wrap_future(place))
        try:
            agent = await asyncio.wait_for(waiting, START_TIMEOUT)
        except TimeoutError:
            raise _not_open(name) from None
        return bind(bare, agent)

    return factory


def server_agent(name: str) -> LatticeAgent:
    """An identity of the running server, for routes of its app.

    Args:
        name: as :func:`server_lifespan` has it.

    Raises:
        IdentityClosed: the server has not started.
    """
    place = _place(name)
    if not place.done():
        raise _not_open(name)
    return place.result()


def _place(name: str) -> concurrent.futures.Future[LatticeAgent]:
    try:
        return _agents[name]
    except KeyError:
        known = ", ".join(sorted(_agents)) or "none"
        raise IdentityClosed(
            f"the server has no identity named {name!r}; it has: {known}",
            hint="Name it in server_lifespan(...) of the app that langgraph.json has under "
            '"http": {"app": …}',
        ) from None


def _not_open(name: str) -> IdentityClosed:
    return IdentityClosed(
        f"the identity {name} is not open",
        code="not_open",
        hint="The app with server_lifespan(...) has to be the one under "
        '"http": {"app": …} of langgraph.json',
    )
