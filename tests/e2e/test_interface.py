"""The backend ``interface`` in a pod: the same identity, for all of the pod's network."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lattice_sdk.testing.world import World, start_world
from support.netns import NetworkNamespace
from support.waiting import wait_for
from support.wrapped import curl

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="an interface needs CAP_NET_ADMIN")
BEGINNING = f"""
import json, os, subprocess, sys
from lattice_sdk import *

def fetch(agent, url):
    done = agent.run({curl()!r} + [url], capture_output=True, text=True)
    return done.stdout or done.returncode
"""


class Pod:
    """A network namespace with a fabric in it, and an agent's process.

    Attributes:
        world: the fabric.
    """

    world: World

    def __init__(self, namespace: NetworkNamespace, stack: contextlib.ExitStack) -> None:
        self._namespace = namespace
        directory = tempfile.TemporaryDirectory(prefix="lattice-pod-")
        place = Path(stack.enter_context(directory))
        fabric = start_world(place)
        self.world = namespace.run(fabric.__enter__)
        stack.callback(namespace.run, fabric.__exit__, None, None, None)
        self.environment = {
            **os.environ,
            "LATTICE_SERVER": self.world.server,
            "LATTICE_TOKEN": self.world.token,
            "LATTICE_BACKEND": "interface",
        }

    def script(self, code: str, *arguments: str, before: tuple[str, ...] = ()) -> Any:
        """What a program prints, as JSON.

        Args:
            code: its text.
            arguments: its own.
            before: words of a command that executes it.
        """
        line = (*before, sys.executable, "-c", BEGINNING + textwrap.dedent(code), *arguments)
        return json.loads(self._namespace.command(*line, env=self.environment, timeout=60))

    def start(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a program."""
        line = [sys.executable, "-c", BEGINNING + textwrap.dedent(code), *arguments]
        return self._namespace.run(
            subprocess.Popen,
            line,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def interfaces(self) -> set[str]:
        found = json.loads(self._namespace.command("ip", "-json", "link"))
        return {link["ifname"] for link in found} - {"tunl0", "sit0", "ip6tnl0", "gre0"}

    def events(self, peer: str) -> list[dict[str, Any]]:
        path = f"/api/v1/events?type=denied&peerId={peer}"
        answer = self._namespace.run(self.world.request, "GET", path)
        return [event["data"] for event in answer["items"]]

    def peers(self) -> set[str]:
        return self._namespace.run(self.world.peers)


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with NetworkNamespace() as namespace, contextlib.ExitStack() as stack:
        yield Pod(namespace, stack)


@pytest.fixture(autouse=True)
def nothing_left(pod: Pod) -> Iterator[None]:
    before = pod.peers()
    yield
    wait_for("the interface to be gone", lambda: pod.interfaces() == {"lo"})
    wait_for("the peers to be gone", lambda: pod.peers() <= before)


def test_everything_of_the_pod_reaches_what_is_granted_from_the_agents_address(pod: Pod) -> None:
    code = """
    with LatticeAgent() as agent:
        assert (agent.backend, agent.isolation) == ("interface", "interface")
        url = f"http://{sys.argv[1]}/"
        with agent.http_client() as http, agent.connect("github-tools.lattice", 80) as stream:
            by_agent = http.get("http://github-tools.lattice/").json()["client"]
            own = stream.getsockname()[0]
        plain = subprocess.run(["curl", "-sS", url], capture_output=True, check=True).stdout
        print(json.dumps([agent.overlay_ip, by_agent, own, json.loads(plain)["client"],
                          json.loads(fetch(agent, url))["client"]]))
    """
    told = pod.script(code, pod.world.addresses["github-tools"])
    assert told == [told[0]] * 5


def test_nothing_else_of_the_overlay_is_reached_and_attempts_are_on_record(pod: Pod) -> None:
    code = """
    with LatticeAgent() as agent:
        try:
            agent.connect(sys.argv[1], 80)
        except Refused as refusal:
            print(json.dumps([agent.peer_id, fetch(agent, f"http://{sys.argv[1]}/"), str(refusal)]))
    """
    payroll = pod.world.addresses["payroll"]
    peer, status, sentence = pod.script(code, payroll)
    assert status == 7
    assert "sandboxed" in sentence
    wait_for(
        "the attempts to be in the event log",
        lambda: [each for each in pod.events(peer) if each["destination"] == payroll],
    )


def test_the_pods_other_network_is_left_alone(pod: Pod) -> None:
    code = """
    with LatticeAgent() as agent:
        route = subprocess.run(["ip", "-json", "route", "show", "table", "all", "type", "unicast"],
                               capture_output=True, text=True, check=True).stdout
        print(json.dumps([route, fetch(agent, sys.argv[1] + "/healthz")]))
    """
    routes, health = pod.script(code, pod.world.server)
    ways = {route["dst"]: route["dev"] for route in json.loads(routes)}
    assert {place for place, device in ways.items() if device == "lattice0"} == {"10.96.0.0/16"}
    assert "ok" in health


def test_server_in_the_pod_is_reached_at_the_overlay_address(pod: Pod) -> None:
    code = """
    import socket, threading
    settings = {"policy_preset": "coordinator"}
    with LatticeAgent(**settings) as agent, LatticeAgent(**settings, backend="userspace") as other:
        with socket.create_server((agent.overlay_ip, 8080)) as server:
            with other.connect(agent.overlay_ip, 8080):
                print(json.dumps([server.accept()[1][0], other.overlay_ip]))
    """
    caller, expected = pod.script(code)
    assert caller == expected


def test_killed_agent_leaves_no_interface_and_no_identity(pod: Pod) -> None:
    before = pod.peers()
    code = """
    agent = LatticeAgent().open()
    print(json.dumps(agent.peer_id), flush=True)
    sys.stdin.read()
    """
    with pod.start(code) as process:
        assert process.stdout is not None
        peer = json.loads(process.stdout.readline())
        assert "lattice0" in pod.interfaces()
        assert peer in pod.peers() - before
        process.kill()


def test_lattice_exec_runs_a_program_in_the_pods_network(pod: Pod) -> None:
    granted = f"http://{pod.world.addresses['github-tools']}/"
    code = """
    line = [sys.executable, "-m", "lattice_sdk", "exec", "--", "curl", "-sS", sys.argv[1]]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    print(done.stdout)
    """
    assert pod.script(code, granted)["client"].startswith("10.96.")


def test_process_without_the_capability_is_told(pod: Pod) -> None:
    code = """
    try:
        LatticeAgent().open()
    except BackendUnavailable as refusal:
        print(json.dumps(str(refusal)))
    """
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    assert "CAP_NET_ADMIN" in pod.script(code, before=without)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_contract_of_adapters_holds() -> None:
    """In a network namespace of its own, with a fabric of its own."""
    contract = Path(__file__).parent.parent / "support" / "interface_contract.py"
    pytest_in_pod = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(contract)]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *pytest_in_pod],
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
