"""Classic AutoGen: agents are what they were, and each has an identity of its own."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from autogen import (
    AssistantAgent,
    ConversableAgent,
    GroupChat,
    GroupChatManager,
    UserProxyAgent,
)
from autogen.agentchat import initiate_group_chat
from autogen.agentchat.group.patterns import RoundRobinPattern
from autogen.coding import CodeBlock, LocalCommandLineCodeExecutor
from autogen.coding.func_with_reqs import with_requirements

from lattice_autogen import (
    LatticeCommandLineCodeExecutor,
    LatticeConversableAgent,
    LatticeMixin,
    classic,
    current_agent,
)
from lattice_sdk import ConfigurationError, IdentityClosed, LatticeError
from lattice_sdk.testing import World
from support.waiting import wait_for


class Assistant(LatticeMixin, AssistantAgent):
    pass


class User(LatticeMixin, UserProxyAgent):
    pass


class Manager(LatticeMixin, GroupChatManager):
    pass


Make = Callable[..., Any]


@pytest.fixture
def make(lattice_world: World) -> Iterator[Make]:
    """Makes agents of any class; those with an identity are closed afterwards."""
    made: list[LatticeMixin] = []

    def make(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
        settings = {"llm_config": False, "human_input_mode": "NEVER"}
        settings |= (
            lattice_world.settings(agent_name=None) if issubclass(kind, LatticeMixin) else {}
        )
        agent = kind(*args, **{**settings, **kwargs})
        if isinstance(agent, LatticeMixin):
            made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.close()


def tells_who(agent: ConversableAgent, seen: list[str]) -> ConversableAgent:
    """An agent that answers with the identity under which it answers."""

    def answer(recipient: ConversableAgent, **_: Any) -> tuple[bool, str]:
        try:
            seen.append(current_agent().peer_id)
        except IdentityClosed:
            seen.append("none")
        return True, f"{recipient.name} was here"

    agent.register_reply([None, ConversableAgent], answer)
    return agent


# Agents.


@pytest.mark.parametrize("kind", [LatticeConversableAgent, Assistant, User])
def test_subclasses_chat_as_before_and_have_the_agents_name(
    lattice_world: World, make: Make, kind: type[Any]
) -> None:
    seen: list[str] = []
    coder = tells_who(make(kind, "coder", code_execution_config=False), seen)
    asker = make(ConversableAgent, "asker")
    chat = asker.initiate_chat(coder, message="hello", max_turns=2, silent=True)
    assert [message["content"] for message in chat.chat_history][1::2] == ["coder was here"] * 2
    assert seen == [coder.lattice_agent.peer_id] * 2
    path = f"/api/v1/peers/{coder.lattice_agent.peer_id}"
    assert lattice_world.request("GET", path)["name"] == "coder"


def test_leaving_the_block_ends_the_identity_but_not_the_agent(
    lattice_world: World, make: Make
) -> None:
    with make(LatticeConversableAgent, "coder", default_auto_reply="still here") as coder:
        peer = coder.lattice_agent.peer_id
        assert lattice_world.knows(peer)
    assert not lattice_world.knows(peer)
    coder.close()
    assert coder.generate_reply([{"role": "user", "content": "x"}]) == "still here"
    with pytest.raises(IdentityClosed):
        coder.lattice_agent.connect("github-tools.lattice", 80)


def test_forgotten_agent_is_given_back(lattice_world: World) -> None:
    coder = LatticeConversableAgent("coder", llm_config=False, **lattice_world.settings())
    peer, reference = coder.lattice_agent.peer_id, weakref.ref(coder)
    del coder
    gc.collect()
    assert reference() is None
    wait_for("the identity to be gone", lambda: not lattice_world.knows(peer))


def test_agents_that_know_each_other_are_forgotten_together(
    lattice_world: World, make: Make
) -> None:
    settings = {"llm_config": False, "human_input_mode": "NEVER", **lattice_world.settings()}
    one, two = LatticeConversableAgent("one", **settings), Assistant("two", **settings)
    one.initiate_chat(two, message="hello", max_turns=1, silent=True)
    peers = {one.lattice_agent.peer_id, two.lattice_agent.peer_id}
    assert peers <= lattice_world.peers()
    del one, two
    gc.collect()
    wait_for("the identities to be gone", lambda: not peers & lattice_world.peers())


# What fails leaves nothing.


class FailsAfter(LatticeConversableAgent):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peer = self.lattice_agent.peer_id
        raise RuntimeError(self.peer)


class FailsFurtherDown(FailsAfter):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize("kind", [FailsAfter, FailsFurtherDown])
def test_agent_that_fails_half_way_gives_its_identity_back(
    lattice_world: World, kind: type[Any]
) -> None:
    with pytest.raises(RuntimeError, match="peer-") as failure:
        kind("coder", llm_config=False, **lattice_world.settings())
    # At once: nothing has been collected, the failure still holds the agent.
    assert failure.value.args[0] not in lattice_world.peers()


@pytest.mark.parametrize(
    "wrong",
    [
        {"functions": 5},
        {"code_execution_config": 5},
        {"code_execution_config": {"executor": "nobody's"}},
        {"no_such_argument": 1},
        {"token": "lt-wrong"},
        {"policy_preset": "omnipotent"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_agent_that_cannot_be_made_leaves_nothing(
    lattice_world: World, wrong: dict[str, Any]
) -> None:
    before = lattice_world.peers()
    with pytest.raises((TypeError, ValueError, LatticeError)):
        LatticeConversableAgent(
            "coder", **{"llm_config": False, **lattice_world.settings()} | wrong
        )
    assert lattice_world.peers() <= before


# Copies.


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_copy_is_another_identity(
    lattice_world: World, make: Make, copier: Callable[[Any], Any]
) -> None:
    seen: list[str] = []
    original = make(LatticeConversableAgent, "coder")
    with copier(original) as twin:
        one, two = original.lattice_agent.peer_id, twin.lattice_agent.peer_id
        assert one != two
        assert {one, two} <= lattice_world.peers()
        for agent in (original, twin):
            tells_who(agent, seen).generate_reply([{"role": "user", "content": "x"}])
        assert seen[0] == one
        assert seen[-1] == two
    assert not lattice_world.knows(two)
    assert lattice_world.knows(one)


def never(message: dict[str, Any]) -> bool:
    return False


def test_pickled_agent_enrolls_where_it_is_loaded_and_carries_no_secret(
    lattice_world: World, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make(LatticeConversableAgent, "coder", is_termination_msg=never)
    data = pickle.dumps(agent)
    config = agent.lattice_agent.wireguard_config.get_secret_value()
    secret = [lattice_world.token, config.split("PrivateKey = ")[1].split()[0]]
    assert not [one for one in secret if one.encode() in data]
    with pytest.raises(ConfigurationError, match="token"):
        pickle.loads(data)
    monkeypatch.setenv("LATTICE_TOKEN", lattice_world.token)
    with pickle.loads(data) as loaded:
        assert loaded.name == "coder"
        assert loaded.lattice_agent.peer_id != agent.lattice_agent.peer_id
        assert lattice_world.knows(loaded.lattice_agent.peer_id)


def test_copy_that_cannot_enroll_leaves_nothing(lattice_world: World, make: Make) -> None:
    agent = make(LatticeConversableAgent, "coder")
    agent._lattice_settings["token"] = "lt-wrong"
    before = lattice_world.peers()
    with pytest.raises(LatticeError):
        copy.deepcopy(agent)
    assert lattice_world.peers() == before


# Chats of several.


def test_members_and_manager_of_a_group_chat_are_identities_of_their_own(make: Make) -> None:
    seen: list[str] = []
    members = [tells_who(make(LatticeConversableAgent, f"m{number}"), seen) for number in range(3)]
    bare = tells_who(make(ConversableAgent, "bare"), seen)
    chat = GroupChat(
        [*members, bare], messages=[], max_round=5, speaker_selection_method="round_robin"
    )
    manager = make(Manager, chat)
    members[0].initiate_chat(manager, message="hello", silent=True)
    own = [member.lattice_agent.peer_id for member in members]
    manager_id = manager.lattice_agent.peer_id
    # What has no identity is run by the manager, and so under the manager's.
    assert seen == [own[1], own[2], manager_id, own[0]]
    assert len({*own, manager_id}) == 4


def test_nested_chat_keeps_the_identities_apart(make: Make) -> None:
    seen: list[str] = []
    outer, inner = make(LatticeConversableAgent, "outer"), make(LatticeConversableAgent, "inner")
    bare = tells_who(make(ConversableAgent, "bare"), seen)
    tells_who(inner, seen)
    outer.register_nested_chats(
        [
            {"recipient": inner, "message": "inner", "max_turns": 1, "silent": True},
            {"recipient": bare, "message": "bare", "max_turns": 1, "silent": True},
        ],
        trigger=lambda sender: sender.name == "asker",
    )
    make(ConversableAgent, "asker").initiate_chat(outer, message="x", max_turns=1, silent=True)
    assert seen == [inner.lattice_agent.peer_id, outer.lattice_agent.peer_id]
    with pytest.raises(IdentityClosed):
        current_agent()


def test_chats_in_threads_never_mix(make: Make) -> None:
    agents = [(make(LatticeConversableAgent, f"a{number}"), list[str]()) for number in range(2)]
    for agent, seen in agents:
        tells_who(agent, seen)

    def chat(number: int) -> None:
        asker = ConversableAgent("asker", llm_config=False, human_input_mode="NEVER")
        asker.initiate_chat(agents[number % 2][0], message="x", max_turns=2, silent=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(chat, range(12)))
    for agent, seen in agents:
        assert seen == [agent.lattice_agent.peer_id] * 12


# Tools.


def who() -> str:
    """Tell the identity."""
    return current_agent().peer_id


async def who_async() -> str:
    """Tell the identity."""
    return current_agent().peer_id


def call(name: str) -> dict[str, Any]:
    function = {"name": name, "arguments": "{}"}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }


@pytest.mark.parametrize("tool", [who, who_async])
def test_tools_run_under_the_identity_of_who_executes_them(
    make: Make, tool: Callable[..., Any]
) -> None:
    caller = make(LatticeConversableAgent, "caller")
    executor = make(LatticeConversableAgent, "executor", function_map={"who": tool})
    reply = executor.generate_reply([call("who")], sender=caller)
    assert reply["tool_responses"][0]["content"] == executor.lattice_agent.peer_id


@pytest.mark.anyio
@pytest.mark.parametrize("tool", [who, who_async])
async def test_tools_of_async_chats_do_so_too(make: Make, tool: Callable[..., Any]) -> None:
    executor = make(LatticeConversableAgent, "executor", function_map={"who": tool})
    reply = await executor.a_generate_reply([call("who")], sender=executor)
    assert reply["tool_responses"][0]["content"] == executor.lattice_agent.peer_id


def test_tools_of_a_group_run_under_the_identity_of_who_calls_them(make: Make) -> None:
    members = []
    for number in range(2):
        member = make(LatticeConversableAgent, f"m{number}", function_map={"who": who})
        replies = iter([call("who"), "that was me"])
        member.register_reply(
            [None, ConversableAgent], lambda *_, replies=replies, **__: (True, next(replies))
        )
        members.append(member)
    pattern = RoundRobinPattern(initial_agent=members[0], agents=members)
    chat, _, _ = initiate_group_chat(pattern, messages="go on", max_rounds=7)
    told = [
        response["content"]
        for message in chat.chat_history
        for response in message.get("tool_responses", ())
    ]
    assert told == [member.lattice_agent.peer_id for member in members]


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


@pytest.mark.parametrize("kind", ["local", "named", "ours", "legacy"])
def test_code_has_the_agents_network_and_nothing_of_the_hosts(
    lattice_world: World, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("LATTICE_TOKEN", lattice_world.token)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hosts")
    monkeypatch.setenv("HTTP_PROXY", "http://hosts-proxy:3128")
    coder = make(User, "coder", code_execution_config=executors(tmp_path)[kind])
    reply = runs_code(coder, REACH.format(denied=lattice_world.addresses["payroll"]))
    assert "execution succeeded" in reply
    client, denied, environment = json.loads(reply[reply.index("[") :])
    assert client == coder.lattice_agent.overlay_ip
    assert denied == 403
    assert lattice_world.token not in environment.values()
    assert "OPENAI_API_KEY" not in environment
    assert environment["HTTP_PROXY"] == coder.lattice_agent.proxy_env()["HTTP_PROXY"]


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


def key() -> str:
    import os

    return os.environ.get("OPENAI_API_KEY", "none")


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
    python.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\nexit 1\n")
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
    assert f"HTTPS_PROXY={coder.lattice_agent.proxy_env()['HTTPS_PROXY']}\n" in seen
    assert "sk-hosts" not in seen


def test_given_executor_stays_as_it_is_and_serves_two_agents(make: Make, tmp_path: Path) -> None:
    executor = LocalCommandLineCodeExecutor(work_dir=tmp_path)
    coders = [
        make(User, f"coder{number}", code_execution_config={"executor": executor})
        for number in range(2)
    ]
    assert type(executor) is LocalCommandLineCodeExecutor
    code = "import os; print(os.environ['HTTP_PROXY'])"
    for coder in coders:
        assert coder.lattice_agent.proxy_env()["HTTP_PROXY"] in runs_code(coder, code)


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
