"""Pods, held to the contract. Their own ends (deletion, eviction, …) are in test_pods.py."""

from __future__ import annotations

import inspect
import json
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
    # A pod takes seconds to start, and its identity must live until the sidecar has it.
    short_ttl = "10s"
    expiring_ttl = "12s"

    @pytest.fixture
    def lattice_world(self, node: Node, fabric: World) -> World:
        Pods.node, Pods.world = node, fabric
        return fabric

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
