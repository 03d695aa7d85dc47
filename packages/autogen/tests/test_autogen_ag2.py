"""ag2: agents are what they were, and each has an identity of its own."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from ag2 import Agent, Inject, MemoryStream, Plugin, TaskConfig
from ag2.events import ToolCallEvent, ToolResultEvent
from ag2.testing import TestConfig
from ag2.tools import LocalEnvironment, SandboxCodeTool, SandboxShellTool, SkillsToolkit

from lattice_autogen import LatticePlugin, current_agent
from lattice_sdk import IdentityClosed, LatticeAgent, LatticeError
from lattice_sdk.testing import World
from support.programs import check_reach, reach, wanting
from support.waiting import wait_for

pytestmark = pytest.mark.anyio


def calls(tool: str, **arguments: Any) -> ToolCallEvent:
    return ToolCallEvent(name=tool, arguments=json.dumps(arguments))


async def who() -> str:
    """Tell the identity."""
    return current_agent().peer_id


def who_in_thread() -> str:
    """Tell the identity."""
    return current_agent().peer_id


async def who_injected(lattice_agent: Annotated[LatticeAgent, Inject()]) -> str:
    """Tell the identity."""
    return lattice_agent.peer_id


async def told(agent: Agent, **options: Any) -> list[str]:
    """What the tools gave that the agent's model called in a turn."""
    stream = MemoryStream()
    await agent.ask("go on", stream=stream, **options)
    events = await stream.history.get_events()
    return [
        part.content if hasattr(part, "content") else str(part.data)
        for event in events
        if isinstance(event, ToolResultEvent)
        for part in event.result.parts
    ]


def agent(name: str, *turns: Any, **options: Any) -> Agent:
    return Agent(name, config=TestConfig(*turns, "done"), **options)


# Agents.


@pytest.mark.parametrize("tool", [who, who_in_thread, who_injected])
async def test_tools_find_the_identity_in_every_way(lattice_world: World, tool: Any) -> None:
    async with LatticePlugin(**lattice_world.settings(agent_name="coder")) as lattice:
        me = lattice.lattice_agent.peer_id
        coder = agent("coder", calls(tool.__name__), tools=[tool], plugins=[lattice])
        assert await told(coder) == [me]
        assert lattice_world.request("GET", f"/api/v1/peers/{me}")["name"] == "coder"
        with pytest.raises(IdentityClosed):
            current_agent()
    assert not lattice_world.knows(me)


async def test_plugin_may_be_given_to_a_single_turn(lattice_world: World) -> None:
    async with LatticePlugin(**lattice_world.settings()) as lattice:
        coder = agent("coder", calls("who"), tools=[who])
        assert await told(coder, plugins=[lattice]) == [lattice.lattice_agent.peer_id]
        with pytest.raises(IdentityClosed):
            await told(coder)


async def test_identity_is_enrolled_with_the_first_turn_and_once(lattice_world: World) -> None:
    lattice = LatticePlugin(**lattice_world.settings())
    coder = agent("coder", calls("who"), tools=[who], plugins=[lattice])
    assert lattice.lattice_agent.state == "new"
    answers = await asyncio.gather(*(told(coder) for _ in range(5)))
    assert answers == [[lattice.lattice_agent.peer_id]] * 5
    await lattice.aclose()
    await lattice.aclose()
    with pytest.raises(IdentityClosed):
        await told(agent("coder", calls("fetch"), tools=[fetch], plugins=[lattice]))


def fetch() -> str:
    """Reach the granted service."""
    with current_agent().http_client() as http:
        return str(http.get("http://github-tools.lattice/").json()["client"])


def test_blocking_programs_use_it_as_well(lattice_world: World) -> None:
    with LatticePlugin(**lattice_world.settings()) as lattice:
        coder = agent("coder", calls("fetch"), tools=[fetch], plugins=[lattice])
        assert asyncio.run(told(coder)) == [lattice.lattice_agent.overlay_ip]
    assert not lattice_world.knows(lattice.lattice_agent.peer_id)


def test_forgotten_agent_is_given_back(lattice_world: World) -> None:
    def work() -> str:
        plugin = LatticePlugin(**lattice_world.settings())
        # In a loop of its own: its worker threads keep what they ran last for as long as it runs.
        return asyncio.run(told(agent("coder", calls("who"), tools=[who], plugins=[plugin])))[0]

    peer = work()
    gc.collect()
    wait_for("it to be gone", lambda: not lattice_world.knows(peer))


async def test_failed_enrollment_is_told_as_it_is(lattice_world: World) -> None:
    lattice = LatticePlugin(**lattice_world.settings(token="lt-wrong"))
    with pytest.raises(LatticeError, match="token"):
        await agent("coder", plugins=[lattice]).ask("go on")


def test_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(TypeError, match="no_such_setting"):
        LatticePlugin(server="http://127.0.0.1:9", token="lt-x", no_such_setting=1)


async def test_what_is_observed_is_what_a_bare_agent_shows(lattice_world: World) -> None:
    async def shown(*plugins: Plugin) -> list[str]:
        stream = MemoryStream()
        coder = agent("coder", calls("work"), tools=[work], plugins=plugins)
        async with coder.run("go on", stream=stream) as run:
            await run.result()
        return [type(event).__name__ for event in await stream.history.get_events()]

    async def work() -> str:
        """Work."""
        return "worked"

    async with LatticePlugin(**lattice_world.settings()) as lattice:
        assert await shown(lattice) == await shown()


async def test_nothing_secret_is_in_a_history(lattice_world: World) -> None:
    async with LatticePlugin(**lattice_world.settings()) as lattice:
        stream = MemoryStream()
        coder = agent("coder", calls("who"), tools=[who], plugins=[lattice])
        reply = await coder.ask("go on", stream=stream)
        shown = (
            repr(await stream.history.get_events()) + repr(reply.context) + repr(coder.middleware)
        )
        config = lattice.lattice_agent.wireguard_config
        assert config is not None
        secrets = [
            lattice_world.token,
            config.get_secret_value().split("PrivateKey = ")[1].split()[0],
            lattice.lattice_agent.proxy_env()["HTTP_PROXY"],
        ]
        assert "peer-" in shown
        assert not [secret for secret in secrets if secret in shown]


# Several.


async def test_agents_at_once_never_mix(lattice_world: World) -> None:
    settings = lattice_world.settings()
    async with LatticePlugin(**settings) as left, LatticePlugin(**settings) as right:
        plugins = [left, right] * 10
        coders = [
            agent(f"a{number}", *[calls("who")] * 5, tools=[who], plugins=[plugin])
            for number, plugin in enumerate(plugins)
        ]
        answers = await asyncio.gather(*(told(coder) for coder in coders))
        assert answers == [[plugin.lattice_agent.peer_id] * 5 for plugin in plugins]


async def test_agent_that_another_calls_keeps_its_identity(lattice_world: World) -> None:
    settings, seen = lattice_world.settings(), list[str]()

    async def note() -> str:
        """Note the identity."""
        seen.append(current_agent().peer_id)
        return "noted"

    async with LatticePlugin(**settings) as outer, LatticePlugin(**settings) as inner:
        helper = agent("helper", calls("note"), tools=[note], plugins=[inner])
        bare = agent("bare", calls("note"), tools=[note])
        tools = [one.as_tool(description="helps", name=one.name) for one in (helper, bare)]
        turns = [calls("helper", objective="x"), calls("bare", objective="x"), calls("note")]
        await agent("main", *turns, tools=[*tools, note], plugins=[outer]).ask("go on")
        mine, others = outer.lattice_agent.peer_id, inner.lattice_agent.peer_id
        # An agent without identity works for the one that called it.
        assert seen == [others, mine, mine]


async def test_subtasks_run_under_the_identity_of_their_agent(lattice_world: World) -> None:
    seen: list[str] = []

    async def note() -> str:
        """Note the identity."""
        seen.append(current_agent().peer_id)
        return "noted"

    tasks = TaskConfig(config=TestConfig(calls("note"), "done"))
    async with LatticePlugin(**lattice_world.settings()) as lattice:
        turn = calls("run_subtask", task="x")
        await agent("main", turn, tools=[note], tasks=tasks, plugins=[lattice]).ask("go on")
        assert seen == [lattice.lattice_agent.peer_id]


# Code.


def tool_and_call(kind: str, code: str, path: Path) -> tuple[Any, ToolCallEvent]:
    """A tool that runs programs on this machine, and the call that runs the code."""
    if kind == "code":
        tool: Any = SandboxCodeTool(LocalEnvironment(path))
        return tool, calls(tool.name, code=code, language="python")
    if kind == "shell":
        (path / "program.py").write_text(code)
        tool = SandboxShellTool(LocalEnvironment(path))
        return tool, calls(tool.name, command="python program.py")
    scripts = path / "skills" / "reach" / "scripts"
    scripts.mkdir(parents=True)
    (scripts.parent / "SKILL.md").write_text("---\nname: reach\ndescription: reach\n---\nRun it.")
    (scripts / "run.py").write_text(code)
    call = calls("run_skill_script", name="reach", script="run.py")
    return SkillsToolkit(path / "skills"), call


@pytest.mark.parametrize("isolation", ["usual", "proxy"])
@pytest.mark.parametrize("kind", ["code", "shell", "skill"])
async def test_programs_have_the_agents_network_and_nothing_of_the_hosts(
    lattice_world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    isolation: str,
) -> None:
    monkeypatch.setenv("LATTICE_TOKEN", lattice_world.token)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hosts")
    monkeypatch.setenv("HTTP_PROXY", "http://hosts-proxy:3128")
    tool, call = tool_and_call(kind, reach(lattice_world), tmp_path)
    async with LatticePlugin(**lattice_world.settings(**wanting(isolation))) as lattice:
        (output,) = await told(agent("coder", call, tools=[tool], plugins=[lattice]))
        check_reach(output, lattice.lattice_agent, lattice_world.token, "sk-hosts")


@pytest.mark.parametrize(
    "code", ["print(6 * 7)", "import sys; sys.exit(3)", "import os; print(os.environ['MY_TOKEN'])"]
)
async def test_programs_give_what_they_give_without_identity(
    lattice_world: World, tmp_path: Path, code: str
) -> None:
    environment = LocalEnvironment(tmp_path, env_vars={"MY_TOKEN": "given on purpose"})
    tool = SandboxCodeTool(environment)
    call = calls(tool.name, code=code, language="python")
    async with LatticePlugin(**lattice_world.settings()) as lattice:
        under = await told(agent("coder", call, tools=[tool], plugins=[lattice]))
    assert under == await told(agent("coder", call, tools=[tool]))


async def test_programs_of_an_agent_without_identity_are_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hosts")
    tool, call = tool_and_call("code", "import os; print(os.environ['OPENAI_API_KEY'])", tmp_path)
    assert await told(agent("coder", call, tools=[tool])) == ["sk-hosts"]


async def test_programs_of_a_closed_agent_are_not_started(
    lattice_world: World, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    tool, call = tool_and_call("code", f"open({str(ran)!r}, 'w')", tmp_path)
    async with LatticePlugin(**lattice_world.settings()) as lattice:
        coder = agent("coder", call, tools=[tool], plugins=[lattice])
    with pytest.raises(IdentityClosed):
        await told(coder)
    assert not ran.exists()
