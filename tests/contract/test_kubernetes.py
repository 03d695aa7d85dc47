"""Pods, held to the contract. Their own ends (deletion, eviction, …) are in test_pods.py."""

from __future__ import annotations

import inspect
import json
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, cast

import pytest

from lattice_k8s_job.layout import Mode
from lattice_sdk import LatticeAgent, errors
from lattice_sdk.errors import LatticeError
from lattice_sdk.testing import Adapter, Capability, World
from lattice_sdk.testing.base import invariant, look
from lattice_sdk.testing.contract import AdapterContract
from support.jobs import GRANTED, job
from support.node import Node, inside, wait_for
from support.podfacade import InterfaceAgent, PodAgent, ProxyAgent
from support.pods import InitError

T = TypeVar("T")
pytestmark = [pytest.mark.pods, pytest.mark.slow, pytest.mark.timeout(240, func_only=True)]

# The agent's container only waits: what an agent does comes from the suite, by the pod's network.
IDLE = """
import signal
signal.signal(signal.SIGTERM, lambda *_: exit(0))
print("ready", flush=True)
signal.pause()
""".strip()
BY_STATUS = {
    kind.exit_code: kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, LatticeError) and kind is not LatticeError
}


# Its graph works with its arguments and environment and reaches a server of its own pod.
PROGRAM = """
import http.server, json, os, sys, threading, typing, urllib.request
from langgraph.graph import END, START, StateGraph

class State(typing.TypedDict):
    answer: int
    parts: list

def served(_: State) -> dict:
    quiet = {"log_message": lambda *_: None}
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), quiet)
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.handle_request).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/etc/hostname") as told:
            return {"parts": [told.status, os.environ["MODE"], os.getcwd(), os.getuid()]}

def ended(state: State) -> dict:
    if sys.argv[1] == "fail":
        raise ValueError("on purpose")
    return {"answer": 6 * len(state["parts"]) + len(sys.argv)}

graph = StateGraph(State)
graph.add_node("served", served)
graph.add_node("ended", ended)
graph.add_edge(START, "served")
graph.add_edge("served", "ended")
graph.add_edge("ended", END)
print(json.dumps(graph.compile().invoke({"answer": 0, "parts": []})))
sys.exit(7)
""".strip()
RANDOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # LangGraph numbers its tasks


class Pods(Adapter):
    name = "kubernetes, proxy"
    capabilities = frozenset({Capability.EXCEPTIONS})
    in_process = False
    node: ClassVar[Node]
    world: ClassVar[World]
    mode = Mode.PROXY
    facade: ClassVar[type[PodAgent]] = ProxyAgent

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        options = {
            "preset": settings["policy_preset"],
            "ttl": settings.get("ttl", "1h"),
            "mode": self.mode,
        }
        pod = job(
            self.node,
            self.world,
            name=settings["agent_name"],
            token=settings["token"],
            server=settings["server"],
            container={"command": ["/usr/bin/python3", "-c", IDLE]},
            options=options,
        )
        with pod:
            try:
                pod.start()
                # Before it, a first process does not heed SIGTERM.
                wait_for("the container to be ready", lambda: "ready" in pod.logs("agent"))
                return work(cast("LatticeAgent", self.facade(pod, self.world)))
            except InitError as failure:
                raise self._error(failure) from None
            finally:
                pod.delete()

    def plain(self, work: Callable[[], T]) -> T:
        """What the work of the suite gives here; for whole programs see :class:`PodContract`."""
        return work()

    def _error(self, failure: InitError) -> LatticeError:
        """What the container said with its status and its last two lines."""
        message, hint = failure.told.splitlines()[-2:]
        kind = BY_STATUS[failure.status]
        return kind(message.partition("error: ")[2], hint=hint.partition("what to do: ")[2])


class LockedPods(Pods):
    name = "kubernetes, interface"
    mode = Mode.INTERFACE
    facade = InterfaceAgent


class PodContract(AdapterContract):
    adapter: type[Pods]
    # A pod takes seconds to start, and its identity must live until the sidecar has it.
    short_ttl = "10s"
    expiring_ttl = "12s"

    @pytest.fixture
    def lattice_world(self, node: Node, fabric: World) -> World:
        Pods.node, Pods.world = node, fabric
        return fabric

    @invariant(8)
    def test_result_is_the_frameworks_own(self, lattice_world: World) -> None:
        """A LangGraph program prints the same and ends with the same status as without Lattice."""
        under, bare = self._with_and_without("succeed")
        assert under == bare
        told, status = bare
        assert json.loads(told) == {"answer": 26, "parts": [200, "yes", "/", 0]}
        assert status == 7, "a status that nothing else gives"

    @invariant(8)
    def test_exception_is_the_frameworks_own(self, lattice_world: World) -> None:
        """What a LangGraph program ends with when a node raises is the same as without Lattice."""
        under, bare = self._with_and_without("fail")
        assert under == bare
        told, status = bare
        assert "ValueError: on purpose" in told
        assert status == 1

    def _with_and_without(self, *arguments: str) -> list[tuple[str, int]]:
        """Output and exit status of the program, as an injected Job and as it was written."""
        found = []
        for injected in (True, False):
            pod = job(
                Pods.node,
                Pods.world,
                container={"command": ["/usr/bin/python3", "-c", PROGRAM, *arguments]},
                options={"mode": self.adapter.mode},
                injected=injected,
                MODE="yes",
            )
            with pod:
                pod.start()
                assert pod.wait() == "Failed"
                assert [name for name in pod.native if pod.status(name)] == []
                told = RANDOM.sub("RANDOM", pod.logs("agent"))
                found.append((told, pod.status("agent")))
        return found

    @invariant(7)
    def test_nothing_secret_is_printed(self, lattice_world: World) -> None:
        """Not in logs, arguments or environment of any container, nor in what the runtime knows."""

        def work(agent: LatticeAgent) -> tuple[list[str], str]:
            look(lattice_world, agent)
            pod = cast("PodAgent", agent).pod
            file = pod.volume("lattice-identity") / "identity" / "identity.json"
            saved = json.loads(file.read_text())
            pod.delete()
            secrets = [lattice_world.token, saved["privateKey"], saved["enrollmentToken"]]
            names = (*pod.starters, *pod.regular)
            return secrets, "".join(pod.logs(name) + pod.inspect(name) for name in names)

        secrets, told = self._run(lattice_world, work)
        assert "was given back" in told
        assert not [secret for secret in secrets if not secret or secret in told]


class TestKubernetesProxy(PodContract):
    adapter = Pods

    @invariant(6)
    def test_two_agents_are_two_identities(self, lattice_world: World) -> None:
        """Two pods: each with its own address; neither's credentials open the other's proxy."""
        import httpx

        def with_two(one: LatticeAgent, two: LatticeAgent) -> None:
            first, second = look(lattice_world, one), look(lattice_world, two)
            assert first.client == first.address != second.address == second.client
            assert first.peer != second.peer
            stolen = two.proxy_env()["HTTP_PROXY"]

            def visit() -> int:
                with httpx.Client(proxy=stolen) as http:
                    return http.get(GRANTED).status_code

            assert inside(cast("PodAgent", one).pod.infra_pid, visit) == 407

        self._run(
            lattice_world,
            lambda one: self._run(lattice_world, lambda two: with_two(one, two)),
        )


class TestKubernetesInterface(PodContract):
    adapter = LockedPods
    # An unmodified program has the kernel's word; the sentence is in the events.
    refusal = "refused"

    @invariant(6)
    def test_two_agents_are_two_identities(self, lattice_world: World) -> None:
        """Two pods: each with its own address, which the other cannot take."""

        def with_two(one: LatticeAgent, two: LatticeAgent) -> None:
            first, second = look(lattice_world, one), look(lattice_world, two)
            assert first.client == first.address != second.address == second.client
            assert first.peer != second.peer

            def steal() -> None:
                with socket.socket() as stream:
                    stream.bind((second.address, 0))

            with pytest.raises(OSError, match="assign requested address"):
                inside(cast("PodAgent", one).pod.infra_pid, steal)

        self._run(
            lattice_world,
            lambda one: self._run(lattice_world, lambda two: with_two(one, two)),
        )
