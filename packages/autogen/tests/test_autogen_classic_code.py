"""Classic AutoGen: the code that an agent executes has the agent's network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from autogen import ConversableAgent, UserProxyAgent
from autogen.coding import CodeBlock, LocalCommandLineCodeExecutor
from autogen.coding.func_with_reqs import with_requirements

from lattice_autogen import LatticeCommandLineCodeExecutor, LatticeMixin, classic
from lattice_sdk import ConfigurationError, IdentityClosed
from lattice_sdk.testing import World
from support.programs import WHERE, check_reach, key, reach, wanting

Make = Callable[..., Any]


class User(LatticeMixin, UserProxyAgent):
    pass


def runs_code(agent: ConversableAgent, code: str, language: str = "python") -> str:
    """What the agent answers to a message with code."""
    message = {"role": "user", "content": f"```{language}\n{code}\n```"}
    reply = agent.generate_reply([message], sender=ConversableAgent("asker", llm_config=False))
    assert isinstance(reply, str)
    return reply


def executors(path: Path) -> dict[str, Any]:
    return {
        "local": {"executor": LocalCommandLineCodeExecutor(work_dir=path)},
        "named": {"executor": "commandline-local", "commandline-local": {"work_dir": path}},
        "ours": {"executor": LatticeCommandLineCodeExecutor(work_dir=path)},
        "legacy": {"work_dir": str(path), "use_docker": False},
    }


@pytest.mark.parametrize("isolation", ["usual", "proxy"])
@pytest.mark.parametrize("kind", ["local", "named", "ours", "legacy"])
def test_code_has_the_agents_network_and_nothing_of_the_hosts(
    lattice_world: World,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    isolation: str,
) -> None:
    monkeypatch.setenv("LATTICE_TOKEN", lattice_world.token)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hosts")
    monkeypatch.setenv("HTTP_PROXY", "http://hosts-proxy:3128")
    config = executors(tmp_path)[kind]
    coder = make(User, "coder", code_execution_config=config, **wanting(isolation))
    reply = runs_code(coder, reach(lattice_world))
    assert "execution succeeded" in reply
    told = reply[reply.index("[") :]
    check_reach(told, coder.lattice_agent, lattice_world.token, "sk-hosts")


@pytest.mark.parametrize("kind", ["local", "legacy"])
@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("print(6 * 7)", "python"),
        ("import sys; sys.exit(3)", "python"),
        ("raise ValueError('x')", "python"),
        ("echo one; echo two >&2; pwd", "sh"),
        ("# filename: named.py\nprint(__file__)", "python"),
        ("print 1", "cobol"),
    ],
)
def test_code_gives_what_it_gives_without_identity(
    make: Make, tmp_path: Path, kind: str, code: str, language: str
) -> None:
    config = executors(tmp_path)[kind]
    bare = make(UserProxyAgent, "coder", code_execution_config=config)
    coder = make(User, "coder", code_execution_config=config)
    assert runs_code(coder, code, language) == runs_code(bare, code, language)


def test_time_limit_of_code_holds(make: Make, tmp_path: Path) -> None:
    executor = LocalCommandLineCodeExecutor(work_dir=tmp_path, timeout=1)
    coder = make(User, "coder", code_execution_config={"executor": executor})
    assert "exitcode: 124" in runs_code(coder, "import time; time.sleep(60)")


def test_functions_for_code_are_loaded_with_the_agents_network(
    lattice_world: World, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hosts")

    executor = LocalCommandLineCodeExecutor(work_dir=tmp_path, functions=[key])
    coder = make(User, "coder", code_execution_config={"executor": executor})
    assert "Code output: none" in runs_code(coder, "from functions import key\nprint(key())")


def test_packages_for_functions_are_installed_with_the_agents_network(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    coder = make(User, "coder", code_execution_config={"executor": executor})
    with pytest.raises(ValueError, match="Pip install failed"):
        runs_code(coder, "print(1)")
    seen = (tmp_path / "seen").read_text()
    assert "net:[" in seen
    assert os.readlink("/proc/self/ns/net") not in seen
    assert "sk-hosts" not in seen


def test_given_executor_stays_as_it_is_and_serves_two_agents(make: Make, tmp_path: Path) -> None:
    executor = LocalCommandLineCodeExecutor(work_dir=tmp_path)
    coders = [
        make(User, f"coder{number}", code_execution_config={"executor": executor})
        for number in range(2)
    ]
    assert type(executor) is LocalCommandLineCodeExecutor
    for coder in coders:
        assert coder.lattice_agent.overlay_ip in runs_code(coder, WHERE)


def test_variables_are_given_to_code_on_purpose(make: Make, tmp_path: Path) -> None:
    executor = LatticeCommandLineCodeExecutor(work_dir=tmp_path, environment={"MY_TOKEN": "mine"})
    coder = make(User, "coder", code_execution_config={"executor": executor})
    assert "Code output: mine" in runs_code(coder, "import os; print(os.environ['MY_TOKEN'])")


def test_code_is_not_run_where_no_agent_runs_it(make: Make, tmp_path: Path) -> None:
    config = executors(tmp_path)["local"]
    coder = make(User, "coder", code_execution_config=config)
    block = CodeBlock(code=f"open({str(tmp_path / 'ran')!r}, 'w')", language="python")
    with pytest.raises(IdentityClosed):
        coder.code_executor.execute_code_blocks([block])
    coder.close()
    with pytest.raises(IdentityClosed):
        runs_code(coder, block.code)
    assert not (tmp_path / "ran").exists()


class Elsewhere(LocalCommandLineCodeExecutor):
    """An executor that may start programs by any means."""


def test_code_of_other_executors_is_refused_unless_somebody_vouches_for_it(
    lattice_world: World, make: Make, tmp_path: Path
) -> None:
    executor, before = Elsewhere(work_dir=tmp_path), lattice_world.peers()
    with pytest.raises(ConfigurationError, match="Elsewhere"):
        make(User, "coder", code_execution_config={"executor": executor})
    assert lattice_world.peers() <= before
    executor.lattice_network = True
    coder = make(User, "coder", code_execution_config={"executor": executor})
    assert "Code output: 42" in runs_code(coder, "print(6 * 7)")


def test_code_in_a_container_of_the_hosts_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coder = make(User, "coder", code_execution_config=executors(tmp_path)["legacy"])
    # AutoGen starts no container inside of one, and this may be one.
    monkeypatch.setattr(classic, "in_docker_container", lambda: False)
    with pytest.raises(ConfigurationError, match="Docker"):
        coder.run_code("print(1)", lang="python", use_docker="python:3", work_dir=str(tmp_path))
