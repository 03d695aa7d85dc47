"""A framework of forty lines, its adapter, and adapters that each break one invariant."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import httpx

from lattice_sdk import LatticeAgent, LatticeError
from lattice_sdk.testing import Adapter, Capability

T = TypeVar("T")


class Pipeline:
    """The toy framework: functions that are called in turn."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        self.steps = steps

    def run(self) -> Any:
        """Call all steps; the last one's result."""
        result = None
        for step in self.steps:
            result = step()
        return result


@contextlib.contextmanager
def lattice_pipeline(**settings: Any) -> Iterator[LatticeAgent]:
    """The toy's adapter: an identity for the length of a block."""
    with LatticeAgent(**settings) as agent:
        yield agent


class Toy(Adapter):
    """What the suite needs to know of it."""

    name = "toy"
    capabilities = frozenset({Capability.EXCEPTIONS})

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        with lattice_pipeline(**settings) as agent:
            return Pipeline(lambda: work(agent)).run()

    def plain(self, work: Callable[[], T]) -> T:
        return Pipeline(work).run()


class Disguised:
    """An agent with some of its methods replaced."""

    def __init__(self, agent: LatticeAgent, **replaced: Any) -> None:
        self.__dict__.update(replaced)
        self.__dict__["_agent"] = agent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


class OutsideTheTunnel(Toy):
    """1: traffic goes by the host's network."""

    name = "broken 1"

    def run(self, settings: Mapping[str, Any], work: Callable[[Any], T]) -> T:
        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"client": "127.0.0.1"}, request=request)

        def http_client() -> httpx.Client:
            return httpx.Client(transport=httpx.MockTransport(answer))

        with LatticeAgent(**settings) as agent:
            return work(Disguised(agent, http_client=http_client))


class LetsThrough(Toy):
    """2: what is refused seems to connect."""

    name = "broken 2"

    def run(self, settings: Mapping[str, Any], work: Callable[[Any], T]) -> T:
        class Socket:
            def close(self) -> None:
                return

        with LatticeAgent(**settings) as agent:
            return work(Disguised(agent, connect=lambda *_, **__: Socket()))


class NeverLeaves(Toy):
    """3: the identity is not given back."""

    name = "broken 3"
    kept: ClassVar[list[LatticeAgent]] = []

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        agent = LatticeAgent(**settings).open()
        self.kept.append(agent)
        return work(agent)


class ReEnrolls(Toy):
    """4: a new identity instead of a renewal."""

    name = "broken 4"

    def run(self, settings: Mapping[str, Any], work: Callable[[Any], T]) -> T:
        with LatticeAgent(**settings) as first, LatticeAgent(**settings) as second:
            asked = iter([first])

            class Changing:
                def __getattr__(self, name: str) -> Any:
                    if name == "http_client":
                        return getattr(next(asked, second), name)
                    return getattr(second, name)

            return work(Changing())


class Swallows(Toy):
    """5: the framework runs though there is no identity."""

    name = "broken 5"

    def run(self, settings: Mapping[str, Any], work: Callable[[Any], T]) -> T:
        try:
            return super().run(settings, work)
        except LatticeError:
            return work(None)


class Shares(Toy):
    """6: one identity for everybody."""

    name = "broken 6"
    lock = threading.Lock()
    shared: ClassVar[list[tuple[LatticeAgent, int]]] = []

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        with self.lock:
            if not self.shared:
                self.shared.append((LatticeAgent(**settings).open(), 0))
            agent, users = self.shared[0]
            self.shared[0] = agent, users + 1
        try:
            return work(agent)
        finally:
            with self.lock:
                agent, users = self.shared[0]
                self.shared[0] = agent, users - 1
                if users == 1:
                    self.shared.clear()
                    agent.close()


class Tells(Toy):
    """7: the proxy's secret is in the environment of what it starts."""

    name = "broken 7"

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        with LatticeAgent(**settings) as agent:
            helper = subprocess.Popen(["sleep", "60"], env={**os.environ, **agent.proxy_env()})
            try:
                return work(agent)
            finally:
                helper.kill()
                helper.wait()


class Rewrites(Toy):
    """8: results and exceptions are the adapter's own."""

    name = "broken 8"

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> Any:
        try:
            result = super().run(settings, work)
        except LatticeError:
            raise
        except Exception as error:
            raise RuntimeError(str(error)) from error
        if isinstance(result, dict):
            return {**copy.copy(result), "adapter": self.name}
        return result


BROKEN = {
    1: OutsideTheTunnel,
    2: LetsThrough,
    3: NeverLeaves,
    4: ReEnrolls,
    5: Swallows,
    6: Shares,
    7: Tells,
    8: Rewrites,
}
