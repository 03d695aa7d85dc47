"""Forwards and listeners while tunnels come and go and calls to the engine are slow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lattice_engine import EngineError
from lattice_sdk import IdentityClosed, TunnelFailed
from lattice_sdk.backends import Tunnel
from lattice_sdk.ingress import Forwards, forward, listen

PORT = 7000


class Life:
    """As much of a life as forwards look at."""

    identity = runtime = None
    ended = False

    def living(self) -> None:
        if self.ended:
            raise IdentityClosed("the agent is closed")

    async def end(self, forwards: Forwards) -> None:
        self.ended = True
        await forwards.tunnel_down()


class Engine(Tunnel):
    """A tunnel whose engine answers when it may, and listens on ports.

    Args:
        full: it sets up no forward of this port.
    """

    def __init__(self, full: int | None = None) -> None:
        self.phases = {}
        self.ports: dict[str, int] = {}
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_answer.set()
        self._full, self._last = full, 0

    async def request(self, method: str, *args: Any) -> Any:
        self.asked.set()
        await self.may_answer.wait()
        if method == "delete_forward":
            return self.ports.pop(args[0])
        port = args[0]["listenPort"]
        if port == self._full or port in self.ports.values():
            raise EngineError("forward_failed", f"port {port} is taken")
        self._last += 1
        self.ports[str(self._last)] = port
        return {"id": self._last}

    async def close(self) -> None:
        self.ports.clear()


@pytest.fixture
def life() -> Any:
    return Life()


def test_a_listener_of_an_agent_that_closes_meanwhile_is_none(life: Any) -> None:
    """However far the call has come: nobody would ever wake who waits for a connection."""

    async def queued_behind_a_slow_call() -> None:
        forwards, engine = Forwards(), Engine()
        await forwards.tunnel_up(life, engine)
        engine.may_answer.clear()
        slow = asyncio.create_task(forwards.add(life, forward(PORT + 1, "127.0.0.1:9")))
        await engine.asked.wait()
        late = asyncio.create_task(listen(life, forwards, PORT))
        await asyncio.sleep(0)
        await end(forwards, engine, slow, late)

    async def asking_the_engine() -> None:
        forwards, engine = Forwards(), Engine()
        await forwards.tunnel_up(life, engine)
        engine.may_answer.clear()
        late = asyncio.create_task(listen(life, forwards, PORT))
        await engine.asked.wait()
        await end(forwards, engine, late)

    async def end(forwards: Forwards, engine: Engine, *calls: asyncio.Task[Any]) -> None:
        await life.end(forwards)
        engine.may_answer.set()
        for call in calls:
            with pytest.raises(IdentityClosed):
                await call
        assert not forwards._wanted

    for scene in (queued_behind_a_slow_call, asking_the_engine):
        life.ended = False
        asyncio.run(scene())


def test_a_forward_is_never_set_up_without_a_tunnel(life: Any) -> None:
    async def scene() -> None:
        forwards = Forwards()
        with pytest.raises(TunnelFailed):
            await forwards.add(life, forward(PORT, "127.0.0.1:9"))
        engine = Engine()
        await forwards.tunnel_up(life, engine)  # and is not wanted any more
        assert not engine.ports

    asyncio.run(scene())


def test_forwards_stay_those_of_the_former_tunnel_where_its_successor_fails(life: Any) -> None:
    async def scene() -> None:
        first, second = forward(PORT, "127.0.0.1:9"), forward(PORT + 1, "127.0.0.1:9")
        forwards, former, successor = Forwards(), Engine(), Engine(full=PORT + 1)
        await forwards.tunnel_up(life, former)
        for one in (first, second):
            await forwards.add(life, one)
        with pytest.raises(TunnelFailed):
            await forwards.tunnel_up(life, successor)
        await successor.close()

        await forwards.remove(second)
        assert list(former.ports.values()) == [PORT]
        await forwards.add(life, forward(PORT + 2, "127.0.0.1:9"))
        assert list(former.ports.values()) == [PORT, PORT + 2]
        assert not successor.ports

    asyncio.run(scene())
