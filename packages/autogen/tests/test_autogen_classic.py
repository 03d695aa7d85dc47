"""Classic AutoGen: agents are what they were, and each has an identity of its own."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

from lattice_autogen import (
    LatticeConversableAgent,
    LatticeMixin,
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


def test_history_of_a_chat_is_the_bare_agents(make: Make) -> None:
    """And so are its summary, its cost and who asked for input."""

    def chat(kind: type[Any]) -> dict[str, Any]:
        coder = make(kind, "coder", code_execution_config=False)
        turns = iter(["first", {"content": "second", "name": "coder"}, None])
        coder.register_reply([None, ConversableAgent], lambda *_, **__: (True, next(turns)))
        asker = make(ConversableAgent, "asker", default_auto_reply="go on")
        asked = asker.initiate_chat(coder, message="hello", max_turns=3, silent=True)
        told = {name: value for name, value in vars(asked).items() if name != "chat_id"}
        return told | {"kept": [dict(message) for message in coder.chat_messages[asker]]}

    bare = chat(ConversableAgent)
    assert [message["content"] for message in bare["chat_history"]][1:4:2] == ["first", "second"]
    assert chat(LatticeConversableAgent) == bare


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
    # Not all of them: one of another test may be on its way back.
    assert agent.lattice_agent.peer_id in lattice_world.peers() <= before


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
