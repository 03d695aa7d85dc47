"""autogen-agentchat: agents and teams are what they were, and each has an identity of its own."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent, BaseChatAgent, CodeExecutorAgent
from autogen_agentchat.base import Response, TaskResult
from autogen_agentchat.messages import BaseChatMessage, TextMessage
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import CancellationToken, FunctionCall
from autogen_core.code_executor import CodeBlock, with_requirements
from autogen_core.models import CreateResult, RequestUsage
from autogen_core.tools import FunctionTool, StaticWorkbench
from autogen_ext.code_executors.local import LocalCommandLineCodeExecutor
from autogen_ext.models.replay import ReplayChatCompletionClient
from autogen_ext.tools.code_execution import PythonCodeExecutionTool

from lattice_autogen import (
    LatticeChatAgent,
    LatticeCommandLineCodeExecutor,
    LatticeMixin,
    current_agent,
)
from lattice_sdk import ConfigurationError, IdentityClosed, LatticeError
from lattice_sdk.testing import World
from support.waiting import wait_for

pytestmark = [
    pytest.mark.anyio,
    # AutoGen's about code that runs on this machine, which is the point here.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Teller:
    """A chat agent that answers with the identity under which it answers."""

    produced_message_types = (TextMessage,)

    async def on_messages(
        self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken
    ) -> Response:
        if messages and messages[-1].to_text() == "wait":
            waiting = asyncio.ensure_future(asyncio.Event().wait())
            cancellation_token.link_future(waiting)
            self.waits.set()
            await waiting
        try:
            content = current_agent().peer_id
        except IdentityClosed:
            content = "none"
        return Response(chat_message=TextMessage(content=content, source=self.name))

    async def on_reset(self, cancellation_token: CancellationToken) -> None:
        return


class Bare(Teller, BaseChatAgent):
    pass


class MixedIn(LatticeMixin, Bare):
    """With the mixin over an agent that there is."""


class OwnAgent(Teller, LatticeChatAgent):
    """Made from the base class, with methods over the mixin's."""


class Team(LatticeMixin, RoundRobinGroupChat):
    pass


class Assistant(LatticeMixin, AssistantAgent):
    pass


class Coder(LatticeMixin, CodeExecutorAgent):
    pass


def said(result: TaskResult) -> list[str]:
    return [message.to_text() for message in result.messages if message.source != "user"]


# Agents.


@pytest.mark.parametrize("kind", [MixedIn, OwnAgent])
async def test_each_way_to_run_an_agent_finds_its_identity(
    lattice_world: World, kind: type[Any]
) -> None:
    async with kind("coder", "a coder", **lattice_world.settings(agent_name=None)) as coder:
        me, token = coder.lattice_agent.peer_id, CancellationToken()
        question = [TextMessage(content="who?", source="user")]
        assert said(await coder.run(task="who?")) == [me]
        assert (await coder.on_messages(question, token)).chat_message.to_text() == me
        steps = [step async for step in coder.on_messages_stream(question, token)]
        assert steps[-1].chat_message.to_text() == me
        results = [step async for step in coder.run_stream(task="who?")]
        assert said(results[-1]) == [me]
        with pytest.raises(IdentityClosed):
            current_agent()
        peer = lattice_world.request("GET", f"/api/v1/peers/{me}")
        assert peer["name"] == "coder"
    assert not lattice_world.knows(me)


async def test_stream_does_not_lend_the_identity_to_its_reader(lattice_world: World) -> None:
    async with MixedIn("coder", "a coder", **lattice_world.settings()) as coder:
        async for _ in coder.run_stream(task="who?"):
            with pytest.raises(IdentityClosed):
                current_agent()


async def test_identity_is_enrolled_with_the_first_message_and_once(lattice_world: World) -> None:
    coder = MixedIn("coder", "a coder", **lattice_world.settings())
    assert coder.lattice_agent.state == "new"
    results = await asyncio.gather(*(coder.run(task="who?") for _ in range(5)))
    assert {said(result)[0] for result in results} == {coder.lattice_agent.peer_id}
    await coder.close()
    await coder.close()
    assert not lattice_world.knows(coder.lattice_agent.peer_id)


async def test_agent_that_was_never_used_has_nothing_to_give_back(lattice_world: World) -> None:
    before = lattice_world.peers()
    await MixedIn("coder", "a coder", **lattice_world.settings()).close()
    assert lattice_world.peers() == before


async def test_failed_enrollment_is_told_as_it_is(lattice_world: World) -> None:
    coder = MixedIn("coder", "a coder", **lattice_world.settings(token="lt-wrong"))
    with pytest.raises(LatticeError, match="token"):
        await coder.run(task="who?")


class Closes(Bare):
    closed = 0

    async def close(self) -> None:
        self.closed += 1
        raise RuntimeError("on purpose")


class LatticeCloses(LatticeMixin, Closes):
    pass


async def test_what_the_agent_closes_itself_is_closed_and_the_identity_too(
    lattice_world: World,
) -> None:
    coder = LatticeCloses("coder", "a coder", **lattice_world.settings())
    await coder.run(task="who?")
    with pytest.raises(RuntimeError, match="on purpose"):
        await coder.close()
    assert coder.closed == 1
    assert not lattice_world.knows(coder.lattice_agent.peer_id)


async def test_cancelled_run_leaves_the_agent_usable(lattice_world: World) -> None:
    async with MixedIn("coder", "a coder", **lattice_world.settings()) as coder:
        token = CancellationToken()
        coder.waits = asyncio.Event()
        run = asyncio.create_task(coder.run(task="wait", cancellation_token=token))
        await coder.waits.wait()
        token.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert said(await coder.run(task="who?")) == [coder.lattice_agent.peer_id]


async def test_copy_is_another_identity(lattice_world: World) -> None:
    async with MixedIn("coder", "a coder", **lattice_world.settings()) as coder:
        for copier in (copy.copy, copy.deepcopy):
            async with copier(coder) as twin:
                assert said(await twin.run(task="who?")) == [twin.lattice_agent.peer_id]
                assert twin.lattice_agent.peer_id != coder.lattice_agent.peer_id
            assert lattice_world.knows(coder.lattice_agent.peer_id)


def peer_id() -> str:
    """Tell the identity."""
    return current_agent().peer_id


def calls(name: str, **arguments: Any) -> CreateResult:
    call = FunctionCall(id="1", name=name, arguments=json.dumps(arguments))
    usage = RequestUsage(prompt_tokens=0, completion_tokens=0)
    return CreateResult(finish_reason="function_calls", content=[call], usage=usage, cached=False)


MODEL_INFO: Any = {
    "vision": False,
    "function_calling": True,
    "json_output": False,
    "family": "unknown",
    "structured_output": False,
}


def model(*answers: Any) -> ReplayChatCompletionClient:
    return ReplayChatCompletionClient(list(answers), model_info=MODEL_INFO)


async def peer_id_async() -> str:
    """Tell the identity."""
    return current_agent().peer_id


@pytest.mark.parametrize("tool", [peer_id, peer_id_async], ids=["thread", "async"])
@pytest.mark.parametrize("how", ["function", "tool", "workbench"])
async def test_tools_of_an_assistant_find_its_identity(
    lattice_world: World, tool: Callable[..., Any], how: str
) -> None:
    made = FunctionTool(tool, "who")
    given: dict[str, dict[str, Any]] = {
        "function": {"tools": [tool]},
        "tool": {"tools": [made]},
        "workbench": {"workbench": StaticWorkbench([made])},
    }
    async with (
        Assistant(
            "one", model(calls(tool.__name__)), **given[how], **lattice_world.settings()
        ) as one,
        Assistant(
            "two", model(calls(tool.__name__)), **given[how], **lattice_world.settings()
        ) as two,
    ):
        results = await asyncio.gather(one.run(task="who?"), two.run(task="who?"))
        told = [said(result)[-1] for result in results]
        assert told == [one.lattice_agent.peer_id, two.lattice_agent.peer_id]
    again = AssistantAgent("bare", model(calls(tool.__name__)), **given[how])
    assert "no identity" in said(await again.run(task="who?"))[-1]


async def test_component_config_holds_no_secret_and_is_loaded_with_an_identity(
    lattice_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Assistant("coder", model("hello"), **lattice_world.settings()) as coder:
        await coder.run(task="hello")
        told = coder.dump_component().model_dump_json() + json.dumps(await coder.save_state())
        assert lattice_world.token not in told
    monkeypatch.setenv("LATTICE_SERVER", lattice_world.server)
    monkeypatch.setenv("LATTICE_TOKEN", lattice_world.token)
    async with AssistantAgent.load_component(coder.dump_component()) as loaded:
        assert isinstance(loaded, Assistant)
        assert lattice_world.knows(loaded.lattice_agent.peer_id)


def test_component_of_a_subclass_is_not_the_bare_class() -> None:
    assert AssistantAgent.component_provider_override is not None
    assert Assistant.component_provider_override is None


# Teams.


async def test_members_with_an_identity_keep_it_and_the_others_use_the_teams(
    lattice_world: World,
) -> None:
    settings = lattice_world.settings()
    async with (
        MixedIn("one", "one", **settings) as one,
        OwnAgent("two", "two", **settings) as two,
        Team([one, Bare("three", "three"), two], max_turns=6, **settings) as team,
    ):
        expected = [agent.lattice_agent.peer_id for agent in (one, team, two)]
        assert said(await team.run(task="who?")) == expected * 2
        await team.reset()
        steps = [step async for step in team.run_stream(task="who?")]
        assert said(steps[-1]) == expected * 2
        assert len(set(expected)) == 3


async def test_members_of_a_bare_team_are_identities_and_the_bare_are_none(
    lattice_world: World,
) -> None:
    async with MixedIn("one", "one", **lattice_world.settings()) as one:
        team = RoundRobinGroupChat([one, Bare("two", "two")], max_turns=4)
        assert said(await team.run(task="who?")) == [one.lattice_agent.peer_id, "none"] * 2


async def test_two_teams_at_once_never_mix(lattice_world: World) -> None:
    settings = lattice_world.settings()
    async with (
        Team([Bare("one", "one"), Bare("two", "two")], max_turns=20, **settings) as left,
        Team([Bare("one", "one"), Bare("two", "two")], max_turns=20, **settings) as right,
    ):
        results = await asyncio.gather(left.run(task="who?"), right.run(task="who?"))
        for team, result in zip((left, right), results, strict=True):
            assert said(result) == [team.lattice_agent.peer_id] * 20


async def test_forgotten_team_is_given_back(lattice_world: World) -> None:
    team = Team([Bare("one", "one")], max_turns=1, **lattice_world.settings())
    peer = said(await team.run(task="who?"))[0]
    del team
    gc.collect()
    await asyncio.to_thread(wait_for, "it to be gone", lambda: not lattice_world.knows(peer))


# Code.

REACH = """
import json, os, urllib.request
from urllib.error import HTTPError
answer = json.load(urllib.request.urlopen("http://github-tools.lattice/", timeout=20))
try:
    urllib.request.urlopen("http://{denied}/", timeout=20)
    denied = "reached"
except HTTPError as error:
    denied = error.code
print(json.dumps([answer["client"], denied, dict(os.environ)]))
"""


async def runs_code(coder: BaseChatAgent, code: str, language: str = "python") -> str:
    """What the agent answers to a message with code."""
    return said(await coder.run(task=f"```{language}\n{code}\n```"))[-1]


def key() -> str:
    import os

    return os.environ.get("OPENAI_API_KEY", "none")


EXECUTORS: dict[str, Callable[[Path], LocalCommandLineCodeExecutor]] = {
    "local": lambda path: LocalCommandLineCodeExecutor(work_dir=path),
    "ours": lambda path: LatticeCommandLineCodeExecutor(work_dir=path),
    "functions": lambda path: LocalCommandLineCodeExecutor(work_dir=path, functions=[key]),
}


@pytest.mark.parametrize("kind", EXECUTORS)
async def test_code_has_the_agents_network_and_nothing_of_the_hosts(
    lattice_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("LATTICE_TOKEN", lattice_world.token)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hosts")
    monkeypatch.setenv("HTTP_PROXY", "http://hosts-proxy:3128")
    executor = EXECUTORS[kind](tmp_path)
    async with Coder("coder", executor, **lattice_world.settings()) as coder:
        reply = await runs_code(coder, REACH.format(denied=lattice_world.addresses["payroll"]))
        client, denied, environment = json.loads(reply)
        assert client == coder.lattice_agent.overlay_ip
        assert denied == 403
        assert lattice_world.token not in environment.values()
        assert "OPENAI_API_KEY" not in environment
        assert environment["HTTP_PROXY"] == coder.lattice_agent.proxy_env()["HTTP_PROXY"]
        if kind == "functions":
            code = "from functions import key\nprint(key())"
            assert (await runs_code(coder, code)).strip() == "none"


async def test_packages_for_functions_are_installed_with_the_agents_network(
    lattice_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hosts")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\nexit 1\n")
    python.chmod(0o700)
    venv = SimpleNamespace(env_exe=str(python), bin_path=str(tmp_path))
    functions = [with_requirements(["a-package"])(key)]
    executor = LocalCommandLineCodeExecutor(
        work_dir=tmp_path, functions=functions, virtual_env_context=venv
    )
    async with Coder("coder", executor, **lattice_world.settings()) as coder:
        with pytest.raises(ValueError, match="Pip install failed"):
            await runs_code(coder, "print(1)")
        seen = (tmp_path / "seen").read_text()
        assert f"HTTPS_PROXY={coder.lattice_agent.proxy_env()['HTTPS_PROXY']}\n" in seen
        assert "sk-hosts" not in seen


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("print(6 * 7)", "python"),
        ("import sys; sys.exit(3)", "python"),
        ("echo one; echo two >&2; pwd", "sh"),
        ("# filename: named.py\nprint(__file__)", "python"),
    ],
)
async def test_code_gives_what_it_gives_without_identity(
    lattice_world: World, tmp_path: Path, code: str, language: str
) -> None:
    executor = LocalCommandLineCodeExecutor(work_dir=tmp_path)
    bare = CodeExecutorAgent("coder", executor)
    async with Coder("coder", executor, **lattice_world.settings()) as coder:
        assert await runs_code(coder, code, language) == await runs_code(bare, code, language)
    assert type(executor) is LocalCommandLineCodeExecutor


async def test_time_limit_of_code_holds(lattice_world: World, tmp_path: Path) -> None:
    executor = LocalCommandLineCodeExecutor(work_dir=tmp_path, timeout=1)
    async with Coder("coder", executor, **lattice_world.settings()) as coder:
        assert "exit code: 124" in await runs_code(coder, "import time; time.sleep(60)")


async def test_tool_that_executes_code_has_the_agents_network(
    lattice_world: World, tmp_path: Path
) -> None:
    tool = PythonCodeExecutionTool(LatticeCommandLineCodeExecutor(work_dir=tmp_path))
    code = "import os; print(os.environ['HTTP_PROXY'])"
    client, settings = model(calls(tool.name, code=code)), lattice_world.settings()
    async with Assistant("coder", client, tools=[tool], **settings) as coder:
        told = said(await coder.run(task="go on"))[-1]
        assert coder.lattice_agent.proxy_env()["HTTP_PROXY"] in told


async def test_tool_that_would_execute_code_with_the_hosts_network_is_refused(
    lattice_world: World, tmp_path: Path
) -> None:
    tool = PythonCodeExecutionTool(LocalCommandLineCodeExecutor(work_dir=tmp_path))
    with pytest.raises(ConfigurationError, match="LatticeCommandLineCodeExecutor"):
        Assistant("coder", model("x"), tools=[tool], **lattice_world.settings())


async def test_variables_are_given_to_code_on_purpose(lattice_world: World, tmp_path: Path) -> None:
    executor = LatticeCommandLineCodeExecutor(work_dir=tmp_path, environment={"MY_TOKEN": "mine"})
    async with Coder("coder", executor, **lattice_world.settings()) as coder:
        code = "import os; print(os.environ['MY_TOKEN'])"
        assert (await runs_code(coder, code)).strip() == "mine"


async def test_code_is_not_run_where_no_agent_runs_it(tmp_path: Path) -> None:
    executor = LatticeCommandLineCodeExecutor(work_dir=tmp_path)
    block = CodeBlock(code=f"open({str(tmp_path / 'ran')!r}, 'w')", language="python")
    with pytest.raises(IdentityClosed):
        await executor.execute_code_blocks([block], CancellationToken())
    assert not (tmp_path / "ran").exists()


class Elsewhere(LocalCommandLineCodeExecutor):
    """An executor that may start programs by any means."""


async def test_code_of_other_executors_is_refused(lattice_world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Elsewhere"):
        Coder("coder", Elsewhere(work_dir=tmp_path), **lattice_world.settings())
