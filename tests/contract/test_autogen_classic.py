"""The AutoGen adapter for ``ConversableAgent``, held to the contract."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from autogen import ConversableAgent

from lattice_autogen import LatticeConversableAgent, current_agent
from lattice_sdk import LatticeAgent
from lattice_sdk.testing import Adapter, Capability
from lattice_sdk.testing.contract import AdapterContract

T = TypeVar("T")
ASKED = [{"role": "user", "content": "go on"}]


def replying(agent: ConversableAgent, reply: Callable[..., Any]) -> list[Any]:
    """Have the agent answer; what ``reply`` gave is in the list."""
    results: list[Any] = []

    def answer(recipient: ConversableAgent, **_: Any) -> tuple[bool, str]:
        results.append(reply())
        return True, "done"

    async def a_answer(recipient: ConversableAgent, **_: Any) -> tuple[bool, str]:
        results.append(await reply())
        return True, "done"

    wanted = a_answer if asyncio.iscoroutinefunction(reply) else answer
    agent.register_reply([None, ConversableAgent], wanted, remove_other_reply_funcs=True)
    return results


def ask(agent: ConversableAgent, reply: Callable[[], T]) -> T:
    """What the agent's reply function gives, in a chat that another agent starts."""
    results = replying(agent, reply)
    asker = ConversableAgent("asker", llm_config=False, human_input_mode="NEVER")
    asker.initiate_chat(agent, message="go on", max_turns=1, silent=True)
    return results[0]


class Classic(Adapter):
    name = "autogen, classic"
    capabilities = frozenset({Capability.ASYNC, Capability.HOLD, Capability.EXCEPTIONS})

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        with LatticeConversableAgent("coder", llm_config=False, **settings) as coder:
            return ask(coder, lambda: work(current_agent()))

    async def arun(
        self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], Awaitable[T]]
    ) -> T:
        async def reply() -> T:
            return await work(current_agent())

        async with LatticeConversableAgent("coder", llm_config=False, **settings) as coder:
            results = replying(coder, reply)
            await coder.a_generate_reply(ASKED)
            return results[0]

    def plain(self, work: Callable[[], T]) -> T:
        return ask(ConversableAgent("coder", llm_config=False), work)

    def hold(self, settings: Mapping[str, Any]) -> tuple[object, Callable[[], LatticeAgent]]:
        coder = LatticeConversableAgent("coder", llm_config=False, **settings)
        reference = weakref.ref(coder.lattice_agent)

        def agent() -> LatticeAgent:
            found = reference()
            assert found is not None
            return found

        return coder, agent


class TestClassic(AdapterContract):
    adapter = Classic
