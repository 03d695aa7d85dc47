"""The AutoGen adapter for autogen-agentchat, held to the contract."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from autogen_agentchat.agents import BaseChatAgent
from autogen_agentchat.base import Response
from autogen_agentchat.messages import BaseChatMessage, TextMessage
from autogen_core import CancellationToken

from lattice_autogen import LatticeMixin, current_agent
from lattice_sdk import LatticeAgent
from lattice_sdk.testing import Adapter, Capability
from lattice_sdk.testing.contract import AdapterContract

T = TypeVar("T")


class Worker(BaseChatAgent):
    """An agent whose answer to a message is a call."""

    produced_message_types = (TextMessage,)

    def __init__(self, work: Callable[[], Awaitable[Any]]) -> None:
        super().__init__("worker", "does what it is told")
        self.work = work
        self.results: list[Any] = []

    async def on_messages(
        self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken
    ) -> Response:
        self.results.append(await self.work())
        return Response(chat_message=TextMessage(content="done", source=self.name))

    async def on_reset(self, cancellation_token: CancellationToken) -> None:
        self.results.clear()


class LatticeWorker(LatticeMixin, Worker):
    pass


class AgentChat(Adapter):
    name = "autogen, agentchat"
    capabilities = frozenset({Capability.ASYNC, Capability.HOLD, Capability.EXCEPTIONS})

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        async def in_thread(agent: LatticeAgent) -> T:
            return await asyncio.to_thread(work, agent)

        return asyncio.run(self.arun(settings, in_thread))

    async def arun(
        self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], Awaitable[T]]
    ) -> T:
        async def reply() -> T:
            return await work(current_agent())

        async with LatticeWorker(reply, **settings) as worker:
            await worker.run(task="go on")
            return worker.results[0]

    def plain(self, work: Callable[[], T]) -> T:
        async def main() -> T:
            worker = Worker(lambda: asyncio.to_thread(work))
            await worker.run(task="go on")
            return worker.results[0]

        return asyncio.run(main())

    def hold(self, settings: Mapping[str, Any]) -> tuple[object, Callable[[], LatticeAgent]]:
        async def nothing() -> None:
            return

        worker = LatticeWorker(nothing, **settings)
        asyncio.run(worker.run(task="go on"))
        reference = weakref.ref(worker.lattice_agent)

        def agent() -> LatticeAgent:
            found = reference()
            assert found is not None
            return found

        return worker, agent


class TestAgentChat(AdapterContract):
    adapter = AgentChat
