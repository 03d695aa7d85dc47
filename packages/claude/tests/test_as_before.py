"""Under an identity the SDK does what it does without: each story runs both ways."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    HookMatcher,
    Message,
    PermissionResultAllow,
    PermissionResultDeny,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
    create_sdk_mcp_server,
    query,
    tool,
)

from lattice_claude import lattice_claude_client, lattice_query
from lattice_sdk.testing import World
from support.model import ScriptedModel, call, say

pytestmark = pytest.mark.anyio
Told = list[Any]
# What is the same in both, of the many fields of the first message.
INIT = ("tools", "mcp_servers", "model", "permissionMode", "slash_commands", "agents", "skills")


def shape(message: Message) -> Any:
    """A message without ids, times and costs, which differ from run to run."""
    kind = type(message).__name__
    if isinstance(message, SystemMessage):
        return kind, message.subtype, {key: message.data.get(key) for key in INIT}
    if isinstance(message, ResultMessage):
        found = (message.subtype, message.is_error, message.num_turns, message.result)
        return kind, *found, [denied["tool_name"] for denied in message.permission_denials or []]
    if isinstance(message, StreamEvent):
        return kind, message.event["type"], message.event.get("delta")
    if isinstance(message, (AssistantMessage, UserMessage)):
        content = message.content
        return kind, content if isinstance(content, str) else [block(one) for one in content]
    return kind


def block(one: Any) -> Any:
    if isinstance(one, TextBlock):
        return one.text
    if isinstance(one, ToolUseBlock):
        return one.name, one.input
    if isinstance(one, ToolResultBlock):
        return one.content, one.is_error
    return type(one).__name__


async def answers(client: ClaudeSDKClient, prompt: Any = "Go on.") -> Told:
    await client.query(prompt)
    return [shape(message) async for message in client.receive_response()]


async def prompts(*texts: str) -> AsyncIterator[dict[str, Any]]:
    for text in texts:
        yield {"type": "user", "message": {"role": "user", "content": text}}


Story = Callable[[ClaudeSDKClient, Path], Any]


@pytest.fixture
def compare(lattice_world: World, model: ScriptedModel, options: Any, tmp_path: Path) -> Any:
    """Tell a story with a bare client and with one that has an identity, at the same time."""

    async def run(make: Callable[[Told], dict[str, Any]], story: Story) -> tuple[Told, Told]:
        async def bare() -> Told:
            told: Told = []
            given = replace(prepared("bare", told), env=direct(model))
            async with ClaudeSDKClient(given) as client:
                return [*await story(client, given.cwd), *told]

        async def under() -> Told:
            told: Told = []
            given = prepared("under", told)
            async with lattice_claude_client(given, **lattice_world.settings()) as client:
                return [*await story(client, given.cwd), *told]

        def prepared(name: str, told: Told) -> ClaudeAgentOptions:
            place = tmp_path / name
            place.mkdir()
            return options(cwd=place, **make(told))

        def direct(model: ScriptedModel) -> dict[str, str]:
            return options().env | {"ANTHROPIC_BASE_URL": model.url}

        one, other = await asyncio.gather(bare(), under())
        return one, other

    return run


async def test_tools_and_partial_messages(compare: Any, model: ScriptedModel) -> None:
    @tool("add", "Add.", {"a": int, "b": int})
    async def add(given: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": str(given["a"] + given["b"])}]}

    @tool("fail", "Fail.", {})
    async def fail(_: Any) -> dict[str, Any]:
        raise ValueError("on purpose")

    model.script = [
        [say("First I add."), call("mcp__t__add", a=1, b=2)],
        [call("mcp__t__fail"), call("Bash", command="echo out; exit 3")],
        [say("done")],
    ]
    bare, under = await compare(
        lambda _: {
            "mcp_servers": {"t": create_sdk_mcp_server("t", tools=[add, fail])},
            "include_partial_messages": True,
        },
        lambda client, _: answers(client),
    )
    assert under == bare
    assert "on purpose" in str(bare)
    assert "StreamEvent" in str(bare)


async def test_streaming_input_in_one_session(compare: Any, model: ScriptedModel) -> None:
    model.script = [[say("one")], [say("two")], [say("three")]]

    async def story(client: ClaudeSDKClient, _: Path) -> Told:
        first = await answers(client, prompts("first"))
        second = await answers(client, "second")
        return [*first, *second, *await answers(client, prompts("third"))]

    bare, under = await compare(lambda _: {}, story)
    assert under == bare
    assert [told[4] for told in bare if told[0] == "ResultMessage"] == ["one", "two", "three"]


async def test_hooks(compare: Any, model: ScriptedModel) -> None:
    def make(told: Told) -> dict[str, Any]:
        async def before(given: Any, *_: Any) -> Any:
            told.append(("before", given["tool_name"], given["tool_input"]))
            if "forbidden" not in given["tool_input"]["command"]:
                return {}
            decision = {"permissionDecision": "deny", "permissionDecisionReason": "it is not done"}
            return {"hookSpecificOutput": {"hookEventName": "PreToolUse", **decision}}

        async def after(given: Any, *_: Any) -> Any:
            told.append(("after", given["tool_name"], given["tool_response"]["stdout"]))
            return {}

        async def submitted(given: Any, *_: Any) -> Any:
            told.append(("submitted", given["prompt"]))
            return {}

        return {
            "hooks": {
                "PreToolUse": [HookMatcher(matcher="Bash", hooks=[before])],
                "PostToolUse": [HookMatcher(hooks=[after])],
                "UserPromptSubmit": [HookMatcher(hooks=[submitted])],
            }
        }

    model.script = [
        [call("Bash", command="echo allowed")],
        [call("Bash", command="echo forbidden")],
        [say("done")],
    ]
    bare, under = await compare(make, lambda client, _: answers(client))
    assert under == bare
    assert "it is not done" in str(bare)
    assert [told[0] for told in bare[-4:]] == ["submitted", "before", "after", "before"]


async def test_can_use_tool(compare: Any, model: ScriptedModel) -> None:
    def make(told: Told) -> dict[str, Any]:
        async def can_use_tool(name: str, given: dict[str, Any], _: Any) -> Any:
            told.append((name, given["command"]))
            if "no" in given["command"]:
                return PermissionResultDeny(message="it is not done")
            return PermissionResultAllow(updated_input={**given, "command": "touch changed"})

        return {"permission_mode": "default", "can_use_tool": can_use_tool}

    async def story(client: ClaudeSDKClient, place: Path) -> Told:
        told = await answers(client)
        return [*told, sorted(os.listdir(place))]

    model.script = [
        [call("Bash", command="touch yes")],
        [call("Bash", command="touch no")],
        [say("done")],
    ]
    bare, under = await compare(make, story)
    assert under == bare
    assert bare[-3:] == [["changed"], ("Bash", "touch yes"), ("Bash", "touch no")]


async def test_interrupt(compare: Any, model: ScriptedModel) -> None:
    # Each for itself: who is interrupted before the model has been asked never asks it.
    asked, go_on = {name: threading.Event() for name in ("bare", "under")}, threading.Event()

    def turn(messages: Any) -> list[dict[str, Any]]:
        if "And now?" in str(messages):
            return [say("again")]
        next(event for name, event in asked.items() if f"Go on, {name}" in str(messages)).set()
        go_on.wait(30)
        return [say("too late")]

    async def story(client: ClaudeSDKClient, place: Path) -> Told:
        await client.query(f"Go on, {place.name}.")
        assert await asyncio.to_thread(asked[place.name].wait, 60)
        await client.interrupt()
        stopped = [shape(message) async for message in client.receive_response()]
        return [*stopped, *await answers(client, "And now?")]

    model.script = [turn, turn]
    try:
        bare, under = await compare(lambda _: {}, story)
    finally:
        go_on.set()
    assert under == bare
    results = [told for told in bare if told[0] == "ResultMessage"]
    assert (results[0][1], results[1][4]) == ("error_during_execution", "again")


async def test_query_and_its_failures(
    lattice_world: World, model: ScriptedModel, options: Any
) -> None:
    model.script = [[say("one")], [say("two")]]
    settings = lattice_world.settings()

    async def told(messages: AsyncIterator[Message]) -> Told:
        return [shape(message) async for message in messages]

    given, direct = options(), options(url=model.url)
    assert await told(
        lattice_query(prompt=prompts("first", "second"), options=given, **settings)
    ) == await told(query(prompt=prompts("first", "second"), options=direct))

    model.script = [lambda _: 1 / 0]  # the model's answer breaks off
    failures = []
    for messages in (
        lattice_query(prompt="Go on.", options=given, **settings),
        query(prompt="Go on.", options=direct),
    ):
        with pytest.raises(Exception, match="error") as failure:
            await told(messages)
        failures.append(failure.type)
    assert failures[0] is failures[1]
