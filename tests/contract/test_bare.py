"""``LatticeAgent`` itself, blocking and async, held to the contract."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from lattice_sdk import LatticeAgent
from lattice_sdk.testing import Adapter, Capability
from lattice_sdk.testing.contract import AdapterContract

T = TypeVar("T")


def referred(agent: LatticeAgent) -> Callable[[], LatticeAgent]:
    """What gives an agent that somebody else keeps."""
    reference = weakref.ref(agent)

    def get() -> LatticeAgent:
        found = reference()
        assert found is not None
        return found

    return get


class Blocking(Adapter):
    name = "bare, blocking"
    capabilities = frozenset({Capability.HOLD, Capability.EXCEPTIONS})

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        with LatticeAgent(**{"isolation": "proxy", **settings}) as agent:
            return work(agent)

    def plain(self, work: Callable[[], T]) -> T:
        return work()

    def hold(self, settings: Mapping[str, Any]) -> tuple[object, Callable[[], LatticeAgent]]:
        agent = LatticeAgent(**{"isolation": "proxy", **settings}).open()
        return agent, referred(agent)


class Isolated(Blocking):
    """Traffic of the agent itself is the same where its programs have a network namespace."""

    name = "bare, with a network namespace"

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        return super().run({**settings, "isolation": "required"}, work)

    def hold(self, settings: Mapping[str, Any]) -> tuple[object, Callable[[], LatticeAgent]]:
        return super().hold({**settings, "isolation": "required"})


class Async(Adapter):
    name = "bare, async"
    capabilities = frozenset({Capability.ASYNC, Capability.HOLD, Capability.EXCEPTIONS})

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        async def in_thread(agent: LatticeAgent) -> T:
            return await asyncio.to_thread(work, agent)

        return asyncio.run(self.arun(settings, in_thread))

    async def arun(
        self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], Awaitable[T]]
    ) -> T:
        async with LatticeAgent(**settings) as agent:
            return await work(agent)

    def plain(self, work: Callable[[], T]) -> T:
        return asyncio.run(asyncio.to_thread(work))

    def hold(self, settings: Mapping[str, Any]) -> tuple[object, Callable[[], LatticeAgent]]:
        async def opened() -> LatticeAgent:
            return await LatticeAgent(**settings).aopen()

        agent = asyncio.run(opened())
        return agent, referred(agent)


class TestBlocking(AdapterContract):
    adapter = Blocking


class TestIsolated(AdapterContract):
    adapter = Isolated


class TestAsync(AdapterContract):
    adapter = Async
