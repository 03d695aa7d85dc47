"""The machine that changes workspaces at random and compares the gateway with the model."""

from __future__ import annotations

import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from lattice_engine import EngineProcess
from lattice_sdk import EgressConnector, NetworkConnector
from lattice_server.fabric import Fabric
from support.truth import (
    BUILT_IN,
    PORTS,
    REFUSALS,
    Agent,
    Flow,
    Model,
    Service,
    Tunnels,
    alive,
    connect,
    passes,
    private,
    public,
    targets,
)
from support.waiting import wait_for

WORKSPACES = ("alpha", "beta")
FLOWS = 24  # looked at after each step
HELD = 4  # connections that stay open over the steps
OWN_PRESETS = ("reviewer", "planner")
WORDS = ("services", "agents", "allow", "service:s0", "service:s1")

words = st.tuples(
    st.sets(st.sampled_from(WORDS), max_size=3), st.sets(st.just("agents"), max_size=1)
)
presets = st.dictionaries(st.sampled_from(OWN_PRESETS), words, max_size=2)
first_words = st.tuples(
    words.map(lambda both: both[0] | {"services"}), st.sets(st.just("agents"), max_size=1)
)
first_presets = st.fixed_dictionaries({"reviewer": first_words, "planner": words})
places = st.sampled_from(WORKSPACES)
ports = st.sets(st.sampled_from(PORTS), min_size=1, max_size=3)
pick = st.integers(0, 1000)
randoms = st.randoms(use_true_random=False)


class Truth:
    """A fabric with two workspaces, connectors in the first, and one engine for all tunnels.

    Attributes:
        expiries: how many identities may be renewed and waited for to the end, twelve seconds each.
    """

    def __init__(self, stack: ExitStack, fabric: Fabric, expiries: int) -> None:
        self.fabric, self.expiries = fabric, expiries
        self.engine = stack.enter_context(EngineProcess.start_netstack())
        self.servers = stack.enter_context(targets())
        self.tunnels = Tunnels(fabric, self.engine, self.servers)
        stack.callback(self.tunnels.close)
        self.pool = stack.enter_context(ThreadPoolExecutor(8))
        self.network = f"{self.servers['network'][0]}/32"
        for name in WORKSPACES:
            fabric.create_workspace(name)
        office = {"name": "office", "kind": "network", "networks": [self.network]}
        for body in (office, {"name": "egress", "kind": "egress"}):
            fabric.request("POST", "/api/v1/services", body | {"workspaceId": "alpha"})
        fabric.request(
            "PUT", "/api/v1/workspaces/alpha/policy", {"privateTargets": ["127.0.0.0/8"]}
        )
        one, two = (
            fabric.create_token(kind="service", workspaceId="alpha", service=name)
            for name in ("office", "egress")
        )
        stack.enter_context(NetworkConnector(fabric.url, one, "office", networks=[self.network]))
        stack.enter_context(EgressConnector(fabric.url, two))


class PolicyMachine(RuleBasedStateMachine):
    """Changes workspaces as administrators and agents do, and looks at what passes."""

    truth: ClassVar[Truth]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model({}, networks={"alpha": self.truth.network})
        self.held: list[tuple[Flow, socket.socket]] = []
        self.random = random.Random(0)
        self.number = 0
        self.dead: list[str] = []

    # Steps.

    @initialize(random_numbers=randoms, first=first_presets)
    def begin(self, random_numbers: random.Random, first: Any) -> None:
        self.random = random_numbers
        for place in WORKSPACES:
            self.set_presets(place, first)
        for name in ("s0", "s1"):
            self.add_service("alpha", name, {("tcp", 80), ("udp", 53)}, name == "s0")
        for preset in ("coordinator", "isolated"):
            self.enroll_as("alpha", preset)
        # A sub-agent whose parent's preset the workspace may change.
        self.delegate_to(self.enroll_as("alpha", "reviewer"), "sandboxed")

    @rule(place=places, wanted=presets)
    def change_policy(self, place: str, wanted: Any) -> None:
        self.set_presets(place, wanted)

    @rule(place=places, name=st.sampled_from(("s0", "s1")), wanted=ports, designated=st.booleans())
    def put_service(self, place: str, name: str, wanted: Any, designated: bool) -> None:
        for service in self.services(place):
            if service.name == name:
                self.manage(
                    "PATCH",
                    f"/api/v1/services/{name}?workspaceId={place}",
                    {"designated": designated, "ports": _ports(wanted)},
                )
                service.ports, service.designated = wanted, designated
                return
        self.add_service(place, name, wanted, designated)

    @precondition(lambda self: any(not service.gone for service in self.model.services))
    @rule(which=pick)
    def remove_service(self, which: int) -> None:
        living = [service for service in self.model.services if not service.gone]
        service = living[which % len(living)]
        self.manage(
            "DELETE", f"/api/v1/services/{service.name}?workspaceId={service.workspace}", None
        )
        service.gone = True

    @precondition(lambda self: len(self.model.living()) < 7)
    @rule(place=places, preset=st.sampled_from([*BUILT_IN, *OWN_PRESETS]), wishes=pick)
    def enroll(self, place: str, preset: str, wishes: int) -> None:
        known = BUILT_IN | self.model.presets.get(place, {})
        self.enroll_as(place, preset if preset in known else sorted(BUILT_IN)[wishes % 3])

    @precondition(lambda self: any(self.children(one) for one in self.model.living()))
    @rule(which=pick, how=pick)
    def delegate(self, which: int, how: int) -> None:
        parents = [one for one in self.model.living() if self.children(one)]
        parent = parents[which % len(parents)]
        narrower = self.children(parent)
        self.delegate_to(parent, narrower[how % len(narrower)])

    @precondition(lambda self: self.model.living())
    @rule(which=pick, how=pick)
    def delegate_too_much(self, which: int, how: int) -> None:
        living = self.model.living()
        parent = living[which % len(living)]
        known = BUILT_IN | self.model.presets.get(parent.workspace, {})
        wider = sorted(known.keys() - self.narrower(parent))
        if wider and len(list(parent.line())) < 3:
            body = {"subAgentName": "sub", "policyPreset": wider[how % len(wider)]}
            path = f"/api/v1/agents/{parent.peer}/delegate"
            answer = self.truth.tunnels.call("POST", path, parent.token, body)
            assert answer.status_code == 403, f"more than {parent.preset} has was delegated: {body}"

    @precondition(lambda self: self.model.living())
    @rule(which=pick, rotate=st.booleans())
    def renew(self, which: int, rotate: bool) -> None:
        living = self.model.living()
        agent = living[which % len(living)]
        key = X25519PrivateKey.generate()
        body = {"publicKey": public(key)} if rotate else {}
        self.renewed(agent, body)
        if rotate:
            change = {"interface": {"privateKey": private(key)}}
            self.truth.engine.client.patch_tunnel(agent.peer, change)
            self.truth.engine.client.probe(agent.peer, "10.96.0.1", timeout=10)

    @precondition(lambda self: self.model.living())
    @rule(which=pick)
    def revoke(self, which: int) -> None:
        living = self.model.living()
        agent = living[which % len(living)]
        answer = self.truth.tunnels.call("DELETE", f"/api/v1/peers/{agent.peer}", agent.token)
        assert answer.status_code == 204
        self.model.end(agent)

    @precondition(lambda self: self.truth.expiries > 0)
    @rule(place=places)
    def expire(self, place: str) -> None:
        self.truth.expiries -= 1
        agent = self.agent(place, self.token(place), "coordinator", [], {"ttl": "8s"}, None)
        first = time.monotonic() + 8.3
        self.look_at_living(agent, first)
        self.renewed(agent, {"ttl": "14s"})
        second = time.monotonic() + 14.3
        wait_for("the first deadline", lambda: time.monotonic() > first)
        self.look_at_living(agent, second)
        wait_for("the second deadline", lambda: time.monotonic() > second)
        self.model.end(agent)

    def look_at_living(self, agent: Agent, end: float) -> None:
        """What an agent of a short life reaches, as long as it surely lives."""
        for flow in self.sample(4, [agent]):
            if time.monotonic() < end - 2:  # still alive when it is answered
                may = self.model.allows(flow)
                real = passes(flow, may)
                assert real == may, f"{flow}: {'passes' if real else 'refused'} "

    # What is looked at.

    @invariant()
    def the_gateway_does_what_the_model_says(self) -> None:
        ended = [agent for agent in self.model.agents if agent.gone and agent.peer not in self.dead]
        flows = self.sample(FLOWS, self.model.living()) + self.sample(2, ended)
        expected = [self.model.allows(flow) for flow in flows]
        seen = self.truth.pool.map(passes, flows, expected)
        for flow, may, real in zip(flows, expected, seen, strict=True):
            said = REFUSALS.get(flow, "") if may else ""
            assert real == may, f"{flow}: {'passes' if real else 'refused'} {said}"
        self.dead += [agent.peer for agent in ended]
        self.look_at_held(flows)

    def look_at_held(self, flows: list[Flow]) -> None:
        """Connections that were made before the step live exactly if they still may."""
        kept = []
        expected = [self.model.allows(flow) for flow, _ in self.held]
        streams = [stream for _, stream in self.held]
        lives = self.truth.pool.map(alive, streams, [10 if may else 0.25 for may in expected])
        for (flow, stream), may, real in zip(self.held, expected, lives, strict=True):
            assert real == may, f"{flow}: the connection {'goes on' if real else 'broke'}"
            if may:
                kept.append((flow, stream))
            else:
                stream.close()
        self.held = kept
        for flow in flows:
            if len(self.held) < HELD and flow.protocol == "tcp" and self.model.allows(flow):
                stream = connect(flow)
                assert stream is not None
                self.held.append((flow, stream))

    def teardown(self) -> None:
        for _, stream in self.held:
            stream.close()
        for agent in self.model.living():
            self.manage("DELETE", f"/api/v1/peers/{agent.peer}", None)
        for service in self.model.services:
            if not service.gone:
                path = f"/api/v1/services/{service.name}?workspaceId={service.workspace}"
                self.manage("DELETE", path, None)
        for tunnel in self.truth.engine.client.list_tunnels():
            self.truth.engine.client.delete_tunnel(tunnel["id"])

    # Helpers.

    def renewed(self, agent: Agent, body: dict[str, str]) -> None:
        path = f"/api/v1/peers/{agent.peer}/renew"
        answer = self.truth.tunnels.call("POST", path, agent.token, body)
        assert answer.status_code == 200, answer.text

    def enroll_as(self, place: str, preset: str) -> Agent:
        words = (BUILT_IN | self.model.presets.get(place, {}))[preset]
        allow = self.wishes(place, words[0])
        return self.agent(place, self.token(place), preset, allow, {"ttl": "1h"}, None)

    def manage(self, method: str, path: str, body: Any) -> Any:
        return self.truth.fabric.request(method, path, body)

    def services(self, place: str) -> list[Service]:
        return [s for s in self.model.services if s.workspace == place and not s.gone]

    def set_presets(self, place: str, wanted: Any) -> None:
        document = {
            name: {"egress": sorted(egress), "ingress": sorted(ingress)}
            for name, (egress, ingress) in wanted.items()
        }
        path = f"/api/v1/workspaces/{place}/policy"
        self.manage("PUT", path, {"presets": document, "privateTargets": ["127.0.0.0/8"]})
        self.model.presets[place] = dict(wanted)

    def add_service(self, place: str, name: str, wanted: Any, designated: bool) -> None:
        token = self.truth.fabric.create_service(
            name, _ports(wanted), designated=designated, workspace=place
        )
        key = X25519PrivateKey.generate()
        answer = self.truth.tunnels.call(
            "POST", f"/api/v1/services/{name}/connect", token, {"publicKey": public(key)}
        )
        assert answer.status_code == 201, answer.text
        self.truth.tunnels.open(answer.json(), key)
        address = answer.json()["overlayIP"].removesuffix("/32")
        self.model.services.append(Service(place, name, address, wanted, designated))

    def token(self, place: str) -> str:
        named = [*BUILT_IN, *self.model.presets.get(place, {})]
        permits = [{"to": "*"}, {"to": "0.0.0.0/0"}]
        return self.truth.fabric.create_token(
            kind="workspace", workspaceId=place, presets=named, allow=permits
        )

    def agent(
        self, place: str, token: str, preset: str, allow: Any, more: Any, parent: Agent | None
    ) -> Agent:
        key = X25519PrivateKey.generate()
        self.number += 1
        body = {"agentName": "sub" if parent else f"agent-{self.number}", **more}
        body |= {"policyPreset": preset, "publicKey": public(key), "allow": _rules(allow)}
        answer = self.truth.tunnels.call("POST", "/api/v1/agent-enroll", token, body)
        assert answer.status_code == 201, (preset, allow, answer.text)
        told = answer.json()
        proxy = self.truth.tunnels.open(told, key)
        names = {s["name"]: s["address"] for s in told["services"] if "." in s["name"]}
        address = told["overlayIP"].removesuffix("/32")
        agent = Agent(place, told["peerId"], told["enrollmentToken"], preset, address, proxy, names)
        agent.allow, agent.parent = list(allow), parent
        self.model.agents.append(agent)
        return agent

    def delegate_to(self, parent: Agent, preset: str) -> None:
        allow: list[tuple[str, str, int]] = []
        if "allow" in (BUILT_IN | self.model.presets[parent.workspace])[preset][0]:
            # What the parent names itself, if it reaches that; else what it reaches.
            own = [wish for wish in parent.allow if self.reaches(parent, wish)]
            reached = [
                (service.address, *wish)
                for service in self.services(parent.workspace)
                for wish in sorted(service.ports)  # the same seed is the same steps
                if self.model.allows(Flow(parent, service.address, *wish))
            ]
            candidates = own or reached
            allow = self.random.sample(candidates, min(2, len(candidates)))
        body = {"subAgentName": "sub", "policyPreset": preset, "allow": _rules(allow)}
        if not allow:
            del body["allow"]
        path = f"/api/v1/agents/{parent.peer}/delegate"
        answer = self.truth.tunnels.call("POST", path, parent.token, body)
        denied = f"{preset} {allow} was not delegated by {parent.preset}: {answer.text}"
        assert answer.status_code == 201, denied
        self.agent(parent.workspace, answer.json()["enrollmentToken"], preset, allow, {}, parent)

    def reaches(self, agent: Agent, wish: tuple[str, str, int]) -> bool:
        """Whether an agent has at this moment what a rule of its own list asks for."""
        to, protocol, port = wish
        named = {f"{one.name}.lattice": one.address for one in self.services(agent.workspace)}
        to = named.get(to, to)
        if to[0].isdigit():
            return self.model.allows(Flow(agent, to, protocol, port))
        # A host name beyond a connector; the name of a service that has gone leads nowhere.
        return not to.endswith(".lattice") and all(
            "allow" in self.model.words(one)[0] and wish in one.allow for one in agent.line()
        )

    def children(self, parent: Agent) -> list[str]:
        """Presets that may be delegated, while the line and the examples are not too long."""
        if len(list(parent.line())) > 2 or len(self.model.living()) >= 7:
            return []
        return self.narrower(parent)

    def narrower(self, parent: Agent) -> list[str]:
        """Presets that are within the parent's, by the words."""
        egress, ingress = self.model.words(parent)
        known = BUILT_IN | self.model.presets.get(parent.workspace, {})
        if parent.preset not in known:
            return []
        return sorted(
            name
            for name, (out, into) in known.items()
            if out - {"allow"} <= egress and into <= ingress
        )

    def wishes(self, place: str, egress: set[str]) -> list[tuple[str, str, int]]:
        """An allow list of what there is, and of what there is not."""
        if "allow" not in egress:
            return []
        tcp, network = self.truth.servers["tcp"][1], self.truth.servers["network"]
        found: list[tuple[str, str, int]] = [("10.96.255.1", "tcp", 80)]
        for service in self.services(place):
            to = self.random.choice([service.address, f"{service.name}.lattice"])
            found.append((to, *self.random.choice(PORTS)))
        for agent in self.model.living():
            found.append((agent.address, *self.random.choice(PORTS)))
        if place == "alpha":
            found.append((f"n{self.random.randrange(2)}.localhost", "tcp", tcp))
            found.append((network[0], "tcp", network[1] + self.random.randrange(2)))
        return self.random.sample(found, min(4, len(found)))

    def sample(self, count: int, sources: list[Agent]) -> list[Flow]:
        """Flows of these agents, to where something listens, half of them where they might pass."""
        if not sources:
            return []
        tcp, network = self.truth.servers["tcp"][1], self.truth.servers["network"]
        flows = []
        for source in sources:
            for service in self.model.services:
                if not service.gone:
                    flows += [Flow(source, service.address, *wish) for wish in PORTS]
            for other in self.model.living():
                if other is not source:
                    flows += [Flow(source, other.address, *wish) for wish in PORTS]
            for agent in self.model.agents:
                flows += [Flow(source, to, "tcp", tcp) for to in agent.names.values()]
                flows += [Flow(source, to, "tcp", network[1]) for to in agent.names.values()]
            flows += [Flow(source, network[0], "tcp", network[1])]
        chosen = dict.fromkeys(self.random.sample(flows, min(count // 2, len(flows))))
        allowed = [flow for flow in flows if self.model.allows(flow)]
        chosen |= dict.fromkeys(self.random.sample(allowed, min(count // 2, len(allowed))))
        # Few datagrams: that none comes back takes time to see.
        datagrams = [flow for flow in chosen if flow.protocol == "udp"]
        return [flow for flow in chosen if flow.protocol != "udp"] + datagrams[:3]


def _ports(wanted: Any) -> list[dict[str, object]]:
    return [{"port": port, "protocol": protocol} for protocol, port in sorted(wanted)]


def _rules(allow: Any) -> list[dict[str, Any]]:
    return [{"to": to, "protocol": protocol, "port": port} for to, protocol, port in allow]
