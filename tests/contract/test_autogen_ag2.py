"""The AutoGen adapter for ``ag2.Agent``, held to the contract."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from ag2 import Agent, Plugin
from ag2.events import ToolCallEvent
from ag2.testing import TestConfig

from lattice_autogen import LatticePlugin, current_agent
from lattice_sdk import LatticeAgent
from lattice_sdk.testing import Adapter, Capability
from lattice_sdk.testing.contract import AdapterContract

T = TypeVar("T")


def worker(work: Callable[[], Awaitable[Any]], plugins: Iterable[Plugin] = ()) -> Agent:
    """An agent whose model calls a tool, once."""

    async def tool() -> str:
        """Do the work."""
        results.append(await work())
        return "done"

    results: list[Any] = []
    config = TestConfig(ToolCallEvent(name="tool", arguments="{}"), "done")
    return Agent("worker", config=config, tools=[tool], plugins=plugins, variables={"r": results})


async def ask(agent: Agent) -> Any:
    """What its tool gave."""
    await agent.ask("go on")
    return agent.variables["r"][0]


class Ag2(Adapter):
    name = "autogen, ag2"
    capabilities = frozenset({Capability.ASYNC, Capability.HOLD, Capability.EXCEPTIONS})

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        async def in_thread(agent: LatticeAgent) -> T:
            return await asyncio.to_thread(work, agent)

        return asyncio.run(self.arun(settings, in_thread))

    async def arun(
        self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], Awaitable[T]]
    ) -> T:
        async def tool() -> T:
            return await work(current_agent())

        async with LatticePlugin(**settings) as lattice:
            return await ask(worker(tool, [lattice]))

    def plain(self, work: Callable[[], T]) -> T:
        return asyncio.run(ask(worker(lambda: asyncio.to_thread(work))))

    def hold(self, settings: Mapping[str, Any]) -> tuple[object, Callable[[], LatticeAgent]]:
        async def nothing() -> None:
            return

        agent = worker(nothing, [LatticePlugin(**settings)])
        asyncio.run(ask(agent))
        reference = weakref.ref(agent.dependencies["lattice_agent"])

        def identity() -> LatticeAgent:
            found = reference()
            assert found is not None
            return found

        return agent, identity


class TestAg2(AdapterContract):
    adapter = Ag2
