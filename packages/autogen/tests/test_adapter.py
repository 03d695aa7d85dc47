"""What holds without any AutoGen: settings, names, how programs are started, what is installed."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lattice_autogen import current_agent
from lattice_autogen._programs import command, confined, rebound
from lattice_autogen.adapter import Settings, acting
from lattice_sdk import ConfigurationError, IdentityClosed, LatticeAgent
from lattice_sdk.testing import World
from lattice_sdk.wire import Name

SERVER = {"server": "http://127.0.0.1:9", "token": "lt-secret"}


@pytest.fixture(scope="module")
def proxied(lattice_world: World) -> Iterator[LatticeAgent]:
    with LatticeAgent(**lattice_world.settings(isolation="proxy")) as agent:
        yield agent


def test_current_agent_says_what_is_missing() -> None:
    with pytest.raises(IdentityClosed, match="reply function or tool"):
        current_agent()


def test_blocks_within_blocks_end_with_the_outer_agent() -> None:
    one, two = LatticeAgent(**SERVER), LatticeAgent(**SERVER)
    with acting(one):
        with acting(two):
            assert current_agent() is two
        assert current_agent() is one


def test_settings_are_told_from_the_other_arguments() -> None:
    keywords: dict[str, Any] = {**SERVER, "llm_config": False, "ttl": "5m"}
    settings = Settings.taken_from(keywords)
    assert settings.keys() == {"server", "token", "ttl"}
    assert keywords == {"llm_config": False}


def test_settings_may_come_in_one_argument_for_classes_with_such_arguments() -> None:
    keywords: dict[str, Any] = {"lattice": SERVER, "timeout": 60}
    assert Settings.taken_from(keywords).keys() == SERVER.keys()
    assert keywords == {"timeout": 60}
    with pytest.raises(TypeError, match="llm_config"):
        Settings.taken_from({"lattice": {"llm_config": False}})


def test_every_setting_of_an_agent_is_known() -> None:
    assert inspect.signature(LatticeAgent).parameters.keys() == Settings.NAMES


def test_token_is_in_no_text_and_no_pickle_but_in_copies() -> None:
    settings = Settings.taken_from(dict(SERVER))
    assert "lt-secret" not in repr(settings)
    assert b"lt-secret" not in pickle.dumps(settings)
    assert pickle.loads(pickle.dumps(settings)) == {"server": SERVER["server"]}
    for twin in (copy.copy(settings), copy.deepcopy(settings)):
        assert twin["token"].get_secret_value() == "lt-secret"


@given(st.text())
def test_any_name_makes_a_name_that_the_control_plane_takes(name: str) -> None:
    agent = Settings(SERVER).agent(name)
    TypeAdapter(Name).validate_python(agent._life.terms.name)


def test_name_in_the_settings_wins() -> None:
    assert Settings(SERVER).agent("the coder")._life.terms.name == "the-coder"
    assert Settings({**SERVER, "agent_name": "other"}).agent("coder")._life.terms.name == "other"


HOST = {
    "PATH": "/bin",
    "LANG": "C",
    "TOKENIZERS_PARALLELISM": "false",
    "MONKEY": "1",
    "LATTICE_TOKEN": "x",
    "LATTICE_TOKEN_FILE": "x",
    "LATTICE_SERVER": "x",
    "OPENAI_API_KEY": "x",
    "ANTHROPIC_AUTH_TOKEN": "x",
    "GITHUB_TOKEN": "x",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "GOOGLE_APPLICATION_CREDENTIALS": "x",
    "PGPASSWORD": "x",
    "SSH_AUTH_SOCK": "x",
    "token": "x",
    "https_proxy": "http://host-proxy:3128",
    "FTP_PROXY": "http://host-proxy:3128",
}


def test_programs_get_the_agents_proxy_and_none_of_the_hosts_secrets(proxied: LatticeAgent) -> None:
    argv, environment = command(proxied, ["python", "-c", "pass"], HOST)
    assert argv == ["python", "-c", "pass"]
    kept = {"PATH": "/bin", "LANG": "C", "TOKENIZERS_PARALLELISM": "false", "MONKEY": "1"}
    assert environment == kept | proxied.proxy_env()


def test_what_is_given_on_purpose_is_there_but_no_way_round_the_agent(
    proxied: LatticeAgent,
) -> None:
    wanted = {"GITHUB_TOKEN": "for the agent", "HTTP_PROXY": "http://host-proxy:3128"}
    _, environment = command(proxied, ["true"], HOST, wanted)
    assert environment["GITHUB_TOKEN"] == "for the agent"
    assert environment["HTTP_PROXY"] == proxied.proxy_env()["HTTP_PROXY"]


def test_programs_of_a_closed_agent_are_not_started() -> None:
    with pytest.raises(IdentityClosed):
        command(LatticeAgent(**SERVER), ["true"], HOST)


def test_programs_run_in_the_agents_namespace_where_nobody_said_otherwise(
    lattice_world: World,
) -> None:
    with LatticeAgent(**lattice_world.settings()) as agent:
        argv, environment = command(agent, ("readlink", "/proc/self/ns/net"), HOST)
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() != os.readlink("/proc/self/ns/net")
    assert environment.keys() == {"PATH", "LANG", "TOKENIZERS_PARALLELISM", "MONKEY"}


def start(*argv: str, times: int = 1) -> list[str]:
    return [subprocess.run(argv, check=True).stdout] * times


def decorated(*argv: str) -> list[str]:
    return start(*argv)


def test_rebound_function_finds_other_names_and_the_original_does_not() -> None:
    class Other:
        @staticmethod
        def run(argv: tuple[str, ...], check: bool) -> Any:
            return subprocess.CompletedProcess(argv, 0, stdout=argv)

    assert rebound(start, subprocess=Other)("no", "such", times=2) == [("no", "such")] * 2
    with pytest.raises(FileNotFoundError):
        start("/no/such/program")


def test_function_that_starts_programs_by_another_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="decorated"):
        rebound(decorated, subprocess=None)


def test_executor_that_nobody_vouches_for_is_refused() -> None:
    class Plain:
        pass

    class Ours(Plain):
        lattice_network = True

    plain, ours = Plain(), Ours()
    assert type(confined(plain, Plain, Ours)) is Ours
    assert type(plain) is Plain
    assert confined(ours, Plain, Ours) is ours
    with pytest.raises(ConfigurationError, match=r"int.*lattice_network"):
        confined(1, Plain, Ours)


def imported(*modules: str, path: Path) -> str:
    """What `from lattice_autogen import LatticeMixin` says where these modules are installed."""
    for module in modules:
        (path / f"{module}.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", "from lattice_autogen import LatticeMixin"],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        ((), "lattice-autogen[classic], lattice-autogen[agentchat], lattice-autogen[ag2]"),
        (("autogen", "autogen_agentchat"), "lattice_autogen.classic or lattice_autogen.agentchat"),
        (("ag2",), "another generation of AutoGen (classic or agentchat)"),
    ],
    ids=["none", "two", "another"],
)
def test_import_says_which_autogen_is_missing(
    tmp_path: Path, modules: tuple[str, ...], told: str
) -> None:
    message = imported(*modules, path=tmp_path)
    assert message.startswith("ImportError: ")
    assert told in message
