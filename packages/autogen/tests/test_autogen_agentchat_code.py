"""autogen-agentchat: the code that an agent executes has the agent's network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from autogen_agentchat.agents import AssistantAgent, BaseChatAgent, CodeExecutorAgent
from autogen_core import CancellationToken
from autogen_core.code_executor import CodeBlock, with_requirements
from autogen_ext.code_executors.local import LocalCommandLineCodeExecutor
from autogen_ext.tools.code_execution import PythonCodeExecutionTool

from lattice_autogen import LatticeCommandLineCodeExecutor, LatticeMixin
from lattice_sdk import ConfigurationError, IdentityClosed
from lattice_sdk.testing import World
from support.agentchat import calls, model, said
from support.programs import WHERE, check_reach, key, reach, wanting

pytestmark = [
    pytest.mark.anyio,
    # AutoGen's about code that runs on this machine, which is the point here.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Assistant(LatticeMixin, AssistantAgent):
    pass


class Coder(LatticeMixin, CodeExecutorAgent):
    pass


async def runs_code(coder: BaseChatAgent, code: str, language: str = "python") -> str:
    """What the agent answers to a message with code."""
    return said(await coder.run(task=f"```{language}\n{code}\n```"))[-1]


EXECUTORS: dict[str, Callable[[Path], LocalCommandLineCodeExecutor]] = {
    "local": lambda path: LocalCommandLineCodeExecutor(work_dir=path),
    "ours": lambda path: LatticeCommandLineCodeExecutor(work_dir=path),
    "functions": lambda path: LocalCommandLineCodeExecutor(work_dir=path, functions=[key]),
}


@pytest.mark.parametrize("isolation", ["usual", "proxy"])
@pytest.mark.parametrize("kind", EXECUTORS)
async def test_code_has_the_agents_network_and_nothing_of_the_hosts(
    lattice_world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    isolation: str,
) -> None:
    monkeypatch.setenv("LATTICE_TOKEN", lattice_world.token)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hosts")
    monkeypatch.setenv("HTTP_PROXY", "http://hosts-proxy:3128")
    executor = EXECUTORS[kind](tmp_path)
    settings = lattice_world.settings(**wanting(isolation))
    async with Coder("coder", executor, **settings) as coder:
        told = await runs_code(coder, reach(lattice_world))
        check_reach(told, coder.lattice_agent, lattice_world.token, "sk-hosts")
        if kind == "functions":
            code = "from functions import key\nprint(key())"
            assert (await runs_code(coder, code)).strip() == "none"


async def test_packages_for_functions_are_installed_with_the_agents_network(
    lattice_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hosts")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n(env; readlink /proc/self/ns/net) > {tmp_path}/seen\nexit 1\n")
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
        assert "net:[" in seen
        assert os.readlink("/proc/self/ns/net") not in seen
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
    client, settings = model(calls(tool.name, code=WHERE)), lattice_world.settings()
    async with Assistant("coder", client, tools=[tool], **settings) as coder:
        told = said(await coder.run(task="go on"))[-1]
        assert coder.lattice_agent.overlay_ip in told


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
