"""The Claude adapter, held to the contract with the real claude command.

The work is a tool that runs in the agent's process; a model whose turns are written here calls it.
"""

from __future__ import annotations

import asyncio
import tempfile
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from claude_agent_sdk import (
    ClaudeAgentOptions,
    ClaudeSDKClient,
    ClaudeSDKError,
    create_sdk_mcp_server,
    tool,
)

from lattice_claude import claude_options, current_agent, lattice_claude_client
from lattice_sdk import LatticeAgent
from lattice_sdk.testing import Adapter, Capability, World
from lattice_sdk.testing.contract import AdapterContract
from support.model import ScriptedModel, call, claude_environment, echo

T = TypeVar("T")
MODEL = "claude-model"
SCRIPT = [[call("mcp__agent__work")], echo]


class Work:
    """The agent's work as a tool of the SDK, and what came of it."""

    def __init__(self, work: Callable[[], Awaitable[Any]]) -> None:
        self.done: list[Any] = []
        self.failed: list[Exception] = []

        @tool("work", "Do the agent's work.", {})
        async def run(_: Any) -> dict[str, Any]:
            try:
                self.done.append(await work())
            except Exception as error:
                self.failed.append(error)
                raise
            return {"content": [{"type": "text", "text": "done"}]}

        self.server = create_sdk_mcp_server("agent", tools=[run])

    def options(self, home: str, url: str) -> ClaudeAgentOptions:
        return ClaudeAgentOptions(
            mcp_servers={"agent": self.server},
            allowed_tools=["mcp__agent__work"],
            setting_sources=[],
            cwd=home,
            env=dict(claude_environment(Path(home), url)),
        )

    async def run_in(self, client: ClaudeSDKClient) -> Any:
        await client.query("Do your work.")
        try:
            async for _ in client.receive_response():
                pass
        except ClaudeSDKError:
            # After the work the model is asked again, also where a test has ended the network.
            if not self.done:
                raise
        if self.failed:  # the SDK tells the model, and goes on
            raise RuntimeError(f"the model was told: {self.failed[0]}")
        return self.done[0]


class Claude(Adapter):
    name = "claude"
    capabilities = frozenset({Capability.ASYNC, Capability.HOLD})

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        async def in_thread(agent: LatticeAgent) -> T:
            return await asyncio.to_thread(work, agent)

        return asyncio.run(self.arun(settings, in_thread))

    async def arun(
        self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], Awaitable[T]]
    ) -> T:
        task = Work(lambda: work(current_agent()))
        with tempfile.TemporaryDirectory(dir=Path.home(), ignore_cleanup_errors=True) as home:
            options = task.options(home, f"http://{MODEL}.lattice")
            async with lattice_claude_client(options, **settings) as client:
                return await task.run_in(client)

    def plain(self, work: Callable[[], T]) -> T:
        async def main() -> T:
            task = Work(lambda: asyncio.to_thread(work))
            with tempfile.TemporaryDirectory() as home, ScriptedModel(*SCRIPT) as model:
                async with ClaudeSDKClient(task.options(home, model.url)) as client:
                    return await task.run_in(client)

        return asyncio.run(main())

    def hold(self, settings: Mapping[str, Any]) -> tuple[object, Callable[[], LatticeAgent]]:
        options = claude_options(LatticeAgent(**settings).open())
        assert options.lattice_agent is not None
        reference = weakref.ref(options.lattice_agent)

        def agent() -> LatticeAgent:
            found = reference()
            assert found is not None
            return found

        return options, agent


@pytest.fixture(scope="class")
def model(lattice_world: World) -> Iterator[None]:
    """The model as a tool service, so that the command reaches it through its tunnel only."""
    with ScriptedModel(*SCRIPT) as model, lattice_world.service(MODEL, model.target):
        yield


@pytest.fixture(scope="class")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home for the agents of this process; those of other processes have one of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.mark.usefixtures("model", "home")
class TestClaude(AdapterContract):
    adapter = Claude
