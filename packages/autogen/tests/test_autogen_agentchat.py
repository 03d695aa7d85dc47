"""autogen-agentchat: agents and teams are what they were, and each has an identity of its own."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent, BaseChatAgent
from autogen_agentchat.base import Response
from autogen_agentchat.messages import (
    BaseChatMessage,
    ModelClientStreamingChunkEvent,
    TextMessage,
)
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import CancellationToken
from autogen_core.models import RequestUsage
from autogen_core.tools import FunctionTool, StaticWorkbench

from lattice_autogen import (
    LatticeChatAgent,
    LatticeMixin,
    current_agent,
)
from lattice_sdk import IdentityClosed, LatticeError
from lattice_sdk.testing import World
from support.agentchat import calls, model, said
from support.waiting import wait_for

pytestmark = pytest.mark.anyio


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


# Agents.


class Chatty:
    """Tells in between what it does, as agents that stream do."""

    produced_message_types = (TextMessage,)

    async def on_messages(
        self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken
    ) -> Response:
        raise AssertionError("it streams")

    async def on_messages_stream(
        self, messages: Sequence[BaseChatMessage], cancellation_token: CancellationToken
    ) -> AsyncIterator[Any]:
        for part in ("a", "b"):
            yield ModelClientStreamingChunkEvent(content=part, source=self.name)
            await asyncio.sleep(0)
        told = TextMessage(content="ab", source=self.name, models_usage=RequestUsage(3, 4))
        yield Response(chat_message=told, inner_messages=[])

    async def on_reset(self, cancellation_token: CancellationToken) -> None:
        return


class BareChatty(Chatty, BaseChatAgent):
    pass


class LatticeChatty(LatticeMixin, BareChatty):
    pass


async def test_stream_is_the_bare_agents(lattice_world: World) -> None:
    """The same messages, of the same types, in the same order; of a team's agents as well."""

    async def streams(kind: type[Any], **settings: Any) -> list[tuple[type[Any], Any]]:
        agent = kind("coder", "a coder", **settings)
        team = RoundRobinGroupChat([agent], max_turns=1)
        told = [step async for step in agent.run_stream(task="go on")]
        told += [step async for step in team.run_stream(task="go on")]
        await agent.close()
        return [(type(step), without_ids(step.model_dump())) for step in told]

    bare = await streams(BareChatty)
    assert [kind.__name__ for kind, _ in bare].count("ModelClientStreamingChunkEvent") == 4
    assert await streams(LatticeChatty, **lattice_world.settings(agent_name=None)) == bare


def without_ids(value: Any) -> Any:
    """What is the same each time."""
    if isinstance(value, dict):
        own = ("id", "created_at", "full_message_id")
        return {name: without_ids(each) for name, each in value.items() if name not in own}
    return [without_ids(each) for each in value] if isinstance(value, list) else value


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
    assert lattice_world.peers() <= before


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
