"""How the command is started: in a namespace where the agent can, else over its proxy."""

from __future__ import annotations

import gc
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions, CLINotFoundError, query

from lattice_claude import claude_options
from lattice_claude.launch import bundled_cli, find_cli, launch
from lattice_claude.settings import PrivateSettings, read_settings
from lattice_sdk import ConfigurationError, LatticeAgent
from lattice_sdk.testing import World
from support.model import ScriptedModel, call, echo, results
from support.waiting import wait_for

LOOK = "env; echo ---; readlink /proc/self/ns/net; cut -d: -f1 /proc/net/dev; cat /proc/1/cmdline"


@pytest.mark.anyio
async def test_agent_that_isolates_starts_the_command_in_its_namespace_without_any_secret(
    lattice_world: World, model: ScriptedModel, options: Any
) -> None:
    model.script = [[call("Bash", command=LOOK)], echo]
    with LatticeAgent(**lattice_world.settings(isolation="required")) as agent:
        password = agent.proxy_env()["HTTP_PROXY"].rpartition("@")[0].rpartition(":")[2]
        bound = claude_options(agent, options())
        async for _ in query(prompt="Go on.", options=bound):
            pass
    environment, _, network = results(model.requests[-1]["messages"])[0].partition("---")
    assert bound.settings is None
    assert "http_proxy" not in environment.lower()
    assert "LATTICE_CLAUDE_COMMAND" not in environment
    assert password not in environment + network + repr(bound)
    assert os.readlink("/proc/self/ns/net") not in network
    assert {"lo", "lattice0"} <= set(network.split())
    assert "eth0" not in network


def test_isolation_that_is_none_takes_the_proxy(lattice_world: World) -> None:
    with LatticeAgent(**lattice_world.settings(isolation="proxy")) as agent:
        way = launch(agent, "claude")
    assert way.secret_environment
    assert way.command[0] == sys.executable
    assert way.command[-1] == "claude"


def test_the_sdks_command_is_found_as_the_sdk_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_cli(None, None) == bundled_cli()
    program = tmp_path / "claude"
    program.touch(0o755)
    assert find_cli("./claude", tmp_path) == "./claude"
    with pytest.raises(CLINotFoundError, match="other"):
        find_cli("./other", tmp_path)
    monkeypatch.setattr("lattice_claude.launch.bundled_cli", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_cli(None, None) == str(program)
    program.unlink()
    with pytest.raises(CLINotFoundError, match="cli_path"):
        find_cli(None, None)


def test_settings_are_read_as_the_command_reads_them(tmp_path: Path) -> None:
    (tmp_path / "it.json").write_text('\ufeff{"a": 1}')
    assert read_settings("it.json", tmp_path) == {"a": 1}
    assert read_settings(' {"a": 2} ', tmp_path) == {"a": 2}
    assert read_settings(None, None) == {}
    for wrong in ("absent.json", "{not json}", "[1]"):
        with pytest.raises(ConfigurationError):
            read_settings(wrong, tmp_path)


def test_private_settings_are_in_memory_and_nobody_can_change_them() -> None:
    settings = PrivateSettings({"env": {"A": "b"}})
    reader = [sys.executable, "-c", f"print(open({settings.path!r}).read())"]
    seen = subprocess.run(reader, capture_output=True, text=True, check=True).stdout
    assert json.loads(seen) == {"env": {"A": "b"}}
    with pytest.raises(PermissionError), open(settings.path, "r+b", buffering=0) as file:
        file.write(b"x")
    assert os.readlink(settings.path).startswith("/memfd:")
    path = settings.path
    del settings
    assert not os.path.exists(path)


def test_private_settings_are_in_a_private_file_where_memory_has_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delattr("os.memfd_create")
    settings = PrivateSettings({"env": {}})
    file = Path(settings.path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    child = os.fork()
    if child == 0:
        settings.__dict__.clear()
        del settings
        os._exit(0)
    os.waitpid(child, 0)
    assert file.exists()
    del settings
    assert not list(tmp_path.iterdir())


def test_command_that_a_forked_child_starts_is_not_started(
    lattice_world: World, tmp_path: Path
) -> None:
    with LatticeAgent(**lattice_world.settings(isolation="proxy")) as agent:
        bound = claude_options(agent, ClaudeAgentOptions(cli_path="/bin/echo"))
    child = os.fork()
    if child == 0:
        with open(tmp_path / "errors", "wb") as errors:
            done = subprocess.run(
                [str(bound.cli_path), "started"],
                env={**os.environ, **bound.env},
                stdout=errors,
                stderr=errors,
                check=False,
            )
        os._exit(done.returncode)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert "who wanted it has ended" in (tmp_path / "errors").read_text()


def test_nothing_of_the_settings_is_open_after_the_options(lattice_world: World) -> None:
    def in_memory() -> list[str]:
        links = Path("/proc/self/fd").iterdir()
        return [one.name for one in links if "lattice-claude" in _target(one)]

    gc.collect()  # settings of other tests may still be open, and would be closed meanwhile
    before = in_memory()
    with LatticeAgent(**lattice_world.settings(isolation="proxy")) as agent:
        kept = [claude_options(agent) for _ in range(3)]
        assert len(in_memory()) == len(before) + 3
        kept.clear()
        wait_for("the settings to be closed", lambda: in_memory() == before)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return ""  # the directory's own
