"""Adapters of the toy that each break one invariant, and the tests that have to catch them."""

from __future__ import annotations

import asyncio
import atexit
import copy
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, TypeVar

import httpx

from lattice_sdk import IdentityExpired, LatticeAgent, LatticeError, Refused
from lattice_sdk.runtime import close_all
from lattice_sdk.testing import Capability
from lattice_sdk.testing.contract import CUT_SLACK
from support.toy import Toy
from support.waiting import wait_for

T = TypeVar("T")
Settings = Mapping[str, Any]


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
    capabilities = frozenset({Capability.ASYNC})

    def run(self, settings: Settings, work: Callable[[Any], T]) -> T:
        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"client": "127.0.0.1"}, request=request)

        def http_client(**_: Any) -> httpx.Client:
            return httpx.Client(transport=httpx.MockTransport(answer))

        with LatticeAgent(**settings) as agent:
            return work(Disguised(agent, http_client=http_client))

    async def arun(self, settings: Settings, work: Callable[[Any], Awaitable[T]]) -> T:
        async def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"client": "127.0.0.1"}, request=request)

        def client(**_: Any) -> httpx.AsyncClient:
            return httpx.AsyncClient(transport=httpx.MockTransport(answer))

        async with LatticeAgent(**settings) as agent:
            return await work(Disguised(agent, async_http_client=client))


class Socket:
    """A connection to nowhere."""

    def close(self) -> None:
        return


class LetsThrough(Toy):
    """2: what is refused seems to connect."""

    name = "broken 2"

    def run(self, settings: Settings, work: Callable[[Any], T]) -> T:
        with LatticeAgent(**settings) as agent:
            return work(Disguised(agent, connect=lambda *_, **__: Socket()))


class RefusesByItself(Toy):
    """2: what is refused is refused here, so that the gateway never sees an attempt."""

    name = "broken 2 (record)"

    def run(self, settings: Settings, work: Callable[[Any], T]) -> T:
        def connect(host: str, port: int) -> Any:
            raise Refused("sandboxed", destination=f"{host}:{port}")

        with LatticeAgent(**settings) as agent:
            return work(Disguised(agent, connect=connect))


class NeverLeaves(Toy):
    """3: the identity is not given back."""

    name = "broken 3"
    kept: ClassVar[list[LatticeAgent]] = []

    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> T:
        agent = LatticeAgent(**settings).open()
        self.kept.append(agent)
        return work(agent)


class ReEnrolls(Toy):
    """4: a new identity instead of a renewal."""

    name = "broken 4"

    def run(self, settings: Settings, work: Callable[[Any], T]) -> T:
        with LatticeAgent(**settings) as first, LatticeAgent(**settings) as second:
            asked = iter([first])

            class Changing:
                def __getattr__(self, name: str) -> Any:
                    if name == "http_client":
                        return getattr(next(asked, second), name)
                    return getattr(second, name)

            return work(Changing())


class Stream(Socket):
    """A connection that gives bytes until a moment of the monotonic clock."""

    def __init__(self, end: float) -> None:
        self._never, self._end = threading.Event(), end

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def settimeout(self, _: float) -> None:
        return

    def sendall(self, _: bytes) -> None:
        return

    def recv(self, _: int) -> bytes:
        self._never.wait(0.01)  # as one that comes in pieces
        return b"x" if time.monotonic() < self._end else b""


class EndsElsewhen(Toy):
    """4: the network does not end at expiry; when it does, the subclasses say."""

    after: ClassVar[float]

    def run(self, settings: Settings, work: Callable[[Any], T]) -> T:
        with LatticeAgent(**settings) as agent:

            def connect(*_: Any) -> Any:
                return Stream(time.monotonic() + agent.remaining + self.after)

            return work(Disguised(agent, connect=connect))


class EndsLate(EndsElsewhen):
    name = "broken 4 (late)"
    after = CUT_SLACK + 1


class EndsEarly(EndsElsewhen):
    name = "broken 4 (early)"
    after = -CUT_SLACK - 0.5


class HidesTheEnd(Toy):
    """4: nobody learns that an identity has expired."""

    name = "broken 4 (expiry)"

    def run(self, settings: Settings, work: Callable[[Any], T]) -> T:
        with LatticeAgent(**settings) as agent:

            def connect(host: str, port: int) -> Any:
                try:
                    return agent.connect(host, port)
                except IdentityExpired:
                    return Socket()

            return work(Disguised(agent, connect=connect))


class Swallows(Toy):
    """5: the framework runs though there is no identity."""

    name = "broken 5"

    def run(self, settings: Settings, work: Callable[[Any], T]) -> T:
        try:
            return super().run(settings, work)
        except LatticeError:
            return work(None)


class Shares(Toy):
    """6: one identity for everybody."""

    name = "broken 6"
    lock = threading.Lock()
    shared: ClassVar[list[tuple[LatticeAgent, int]]] = []

    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> T:
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

    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> T:
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

    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> Any:
        try:
            result = super().run(settings, work)
        except LatticeError:
            raise
        except Exception as error:
            raise RuntimeError(str(error)) from error
        if isinstance(result, dict):
            return {**copy.copy(result), "adapter": self.name}
        return result


class Leaves(Toy):
    """3: something other than the identity is left; which, the subclasses say."""

    kept: ClassVar[list[Any]] = []

    def leave(self) -> Any:
        """Make what is left."""
        raise NotImplementedError

    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> T:
        self.kept.append(self.leave())
        return super().run(settings, work)


class LeavesAProcess(Leaves):
    name = "broken 3 (process)"

    def leave(self) -> Any:
        return subprocess.Popen(["sleep", "120"])


class LeavesANamespace(Toy):
    """3: no process is left, and a network namespace is there no less."""

    name = "broken 3 (namespace)"

    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> T:
        with subprocess.Popen(["unshare", "--user", "--net", "sleep", "120"]) as helper:
            network, own = f"/proc/{helper.pid}/ns/net", os.readlink("/proc/self/ns/net")
            wait_for("a namespace of its own", lambda: os.readlink(network) != own)
            Leaves.kept.append(os.open(network, os.O_RDONLY))
            try:
                return super().run(settings, work)
            finally:
                helper.kill()


class LeavesAThread(Leaves):
    name = "broken 3 (thread)"

    def leave(self) -> Any:
        forever = threading.Event()
        threading.Thread(target=forever.wait, name="the last one", daemon=True).start()


class LeavesASocket(Leaves):
    name = "broken 3 (socket)"

    def leave(self) -> Any:
        return socket.create_server(("127.0.0.1", 0))


class LeavesAFile(Leaves):
    name = "broken 3 (file)"

    def leave(self) -> Any:
        return tempfile.mkdtemp()


class KeepsOnException(Toy):
    """3: only the ordinary way out is thought of."""

    name = "broken 3 (exception)"
    kept: ClassVar[list[LatticeAgent]] = []

    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> T:
        agent = LatticeAgent(**settings).open()
        self.kept.append(agent)
        result = work(agent)
        agent.close()
        return result


class KeepsOnCancellation(Toy):
    """3: an exception is thought of, a cancellation is not."""

    name = "broken 3 (cancellation)"
    capabilities = frozenset({Capability.ASYNC})
    kept: ClassVar[list[LatticeAgent]] = []

    async def arun(self, settings: Settings, work: Callable[[LatticeAgent], Awaitable[T]]) -> T:
        agent = await LatticeAgent(**settings).aopen()
        self.kept.append(agent)
        try:
            return await work(agent)
        finally:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                await agent.aclose()


class Remembers(Toy):
    """3: what is forgotten elsewhere is held here."""

    name = "broken 3 (garbage collection)"
    capabilities = frozenset({Capability.HOLD})
    kept: ClassVar[list[LatticeAgent]] = []

    def hold(self, settings: Settings) -> tuple[object, Callable[[], LatticeAgent]]:
        agent = LatticeAgent(**settings).open()
        self.kept.append(agent)
        return object(), weakref.ref(agent)  # type: ignore[return-value]


class IgnoresSignals(Toy):
    """3: the process is not to be ended."""

    name = "broken 3 (signals)"

    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> T:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        return super().run(settings, work)


class OutlivesItsProcess(Toy):
    """3: the identity is kept for a next time, which does not come."""

    name = "broken 3 (end of the process)"
    capabilities = frozenset({Capability.HOLD})
    kept: ClassVar[list[LatticeAgent]] = []

    def _open(self, settings: Settings) -> LatticeAgent:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            agent = LatticeAgent(**settings, state_dir=f"{directory}/state").open()
        self.kept.append(agent)
        atexit.register(os._exit, 0)
        return agent

    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> T:
        return work(self._open(settings))

    def hold(self, settings: Settings) -> tuple[object, Callable[[], LatticeAgent]]:
        agent = self._open(settings)
        return agent, lambda: agent


class EndsWithItsChild(Toy):
    """3: a forked child gives the identity of its parent back."""

    name = "broken 3 (fork)"

    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> T:
        with LatticeAgent(**settings) as agent:
            identity = agent._identity()
            url = f"{identity.server}/api/v1/peers/{identity.peer_id}"
            token = identity.enrollment_token.get_secret_value()
            os.register_at_fork(
                after_in_child=lambda: httpx.delete(
                    url, headers={"Authorization": f"Bearer {token}"}
                )
            )
            # Afterwards its requests are waited for in vain.
            return work(Disguised(agent, http_client=lambda **_: agent.http_client(timeout=10)))


def clean_up() -> None:
    """End what the broken ones have left, so that the next one is judged by its own doing."""
    close_all()
    for kept in Leaves.kept:
        if isinstance(kept, subprocess.Popen):
            kept.kill()
            kept.wait()
        elif isinstance(kept, socket.socket):
            kept.close()
        elif isinstance(kept, int):
            os.close(kept)
    Leaves.kept.clear()


# Each with the tests that have to fail, and what they have to say.
NOT_WITHIN = "not within .* s: "
GONE = NOT_WITHIN + r"peer-\w+ to be gone"
LEFT = NOT_WITHIN + r"nothing to be left; there is: \['"
OUTSIDE = r"'127\.0\.0\.1' == '10\."
BROKEN: dict[type[Toy], dict[str, str]] = {
    OutsideTheTunnel: {
        "test_granted_service_sees_the_enrolled_address": OUTSIDE,
        "test_async_run_is_an_identity_as_well": OUTSIDE,
    },
    LetsThrough: {
        f"test_what_is_not_granted_is_refused_at_once[{what}]": f"{what} can be reached"
        for what in ("undesignated", "name")
    },
    RefusesByItself: {"test_refusals_are_on_record": NOT_WITHIN + "the denied flow to be in"},
    NeverLeaves: {"test_return_leaves_nothing": GONE},
    LeavesAProcess: {"test_return_leaves_nothing": LEFT + r"process \d+: sleep 120 '\]"},
    LeavesAThread: {"test_return_leaves_nothing": LEFT + r"thread the last one'\]"},
    LeavesANamespace: {
        "test_return_leaves_nothing": LEFT + r"namespace net:\[\d+\] of process \d+: [^']+'\]"
    },
    LeavesASocket: {"test_return_leaves_nothing": LEFT + r"socket:\S+ of this process'\]"},
    LeavesAFile: {"test_return_leaves_nothing": LEFT + r"file /\S+'\]"},
    KeepsOnException: {"test_exception_leaves_nothing": GONE},
    KeepsOnCancellation: {"test_cancellation_leaves_nothing": GONE},
    Remembers: {"test_forgetting_leaves_nothing": GONE},
    IgnoresSignals: {f"test_signal_leaves_nothing[{number}]": GONE for number in (2, 15)},
    OutlivesItsProcess: {
        "test_signal_leaves_nothing[9]": GONE,
        "test_interpreter_exit_leaves_nothing": GONE,
        "test_interpreter_exit_during_work_leaves_nothing": GONE,
    },
    EndsWithItsChild: {"test_forked_child_takes_nothing_along": "ended without a line"},
    ReEnrolls: {"test_work_longer_than_its_ttl_keeps_its_identity": r"assert Seen\(.*\) == Seen\("},
    EndsLate: {"test_failed_renewals_end_the_network_at_expiry": "was there for .* beyond expiry"},
    EndsEarly: {"test_failed_renewals_end_the_network_at_expiry": "ended .* before expiry"},
    HidesTheEnd: {"test_failed_renewals_end_the_network_at_expiry": "was not refused"},
    Swallows: {
        f"test_failed_enrollment_says_what_to_do[{what}]": "DID NOT RAISE"
        for what in ("token", "server", "preset")
    },
    Shares: {"test_two_agents_are_two_identities": "assert 200 == 407"},
    Tells: {"test_nothing_secret_is_printed": r"assert not \["},
    Rewrites: {
        "test_result_is_the_frameworks_own": "'adapter': 'broken 8'",
        "test_exception_is_the_frameworks_own": "RuntimeError: on purpose",
    },
}
