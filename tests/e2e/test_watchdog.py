"""A gateway that moves or stays away for a while, and the agents that find it again by themselves.

A session that lives for a second or two, instead of three minutes, is all that is not real.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lattice_sdk.testing.tools import ToolService
from lattice_server.fabric import Fabric
from lattice_server.ports import free_port
from support.moving import OWN_HOSTS, DatagramRelay, write_hosts
from support.waiting import wait_for

# Seconds of silence. Three times that until a tunnel is given up are enough for a gateway's start
# and the renewal after it, also on a busy machine.
ENOUGH = 6.0

PROGRAM = textwrap.dedent(
    """
    import json, sys
    from lattice_sdk import LatticeAgent

    with LatticeAgent(agent_name="mover", backend=sys.argv[1]) as agent:
        inside = agent.popen(["sleep", "1000"]) if sys.argv[1] == "netns" else None
        for _ in sys.stdin:
            told = {"peer": agent.peer_id, "address": agent.overlay_ip}
            try:
                with agent.http_client(timeout=3) as http:
                    told |= http.get("http://github-tools.lattice/").json()
            except Exception as error:  # whatever it is, the test looks at it
                told["error"] = f"{type(error).__name__}: {error}"
            told["inside"] = inside.poll() is None if inside else None
            told["state"] = agent.state
            print(json.dumps(told), flush=True)
    """
)


class Mover:
    """A process with an agent in it, which is asked to call a tool service."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self._log = process, log

    def call(self) -> dict[str, Any]:
        """What its agent is, with the service's answer or the error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print("call", file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, self.log()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def log(self) -> str:
        return self._log.read_text()

    def is_served(self) -> dict[str, Any] | None:
        answer = self.call()
        del answer["state"]  # it may be renewing itself just now
        return answer if answer.get("client") == answer["address"] else None


@contextmanager
def agent(
    fabric: Fabric, backend: str, prefix: Sequence[str] = (), silence: float = 1
) -> Iterator[Mover]:
    log = fabric.directory / "mover.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*prefix, sys.executable, "-c", PROGRAM, backend],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(fabric.directory),  # root's is another's in a namespace
                "LATTICE_SERVER": fabric.url,
                "LATTICE_TOKEN": fabric.workspace_token,
                "LATTICE_TEST_SILENCE": str(silence),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            yield Mover(process, log)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


@contextmanager
def service(fabric: Fabric, prefix: Sequence[str] = (), silence: float = 1) -> Iterator[None]:
    """``github-tools``, with a connector of its own process."""
    token = fabric.create_service("github-tools", [{"port": 80, "protocol": "tcp"}])
    with ExitStack() as stack:
        tool = stack.enter_context(ToolService("github-tools"))
        command = ["connect", "github-tools", "--listen", "80", "--to", tool.target]
        command += ["--proxy-protocol", "--output", "json"]
        process = stack.enter_context(
            subprocess.Popen(
                [*prefix, sys.executable, "-m", "lattice_sdk", *command],
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(fabric.directory),  # root's is another's in a namespace
                    "LATTICE_SERVER": fabric.url,
                    "LATTICE_TOKEN": token,
                    "LATTICE_TEST_SILENCE": str(silence),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        stack.callback(process.terminate)
        assert process.stdout is not None
        assert process.stdout.readline()
        yield


def gateway_port(fabric: Fabric) -> int:
    state = json.loads((fabric.directory / "gateway" / "gateway.json").read_text())
    return int(state["listenPort"])


@pytest.mark.parametrize("backend", ["userspace", "netns"])
def test_agents_learn_from_the_control_plane_where_the_gateway_is_now(
    tmp_path: Path, backend: str
) -> None:
    with (
        Fabric(tmp_path / "f") as fabric,
        service(fabric, silence=ENOUGH),
        agent(fabric, backend, silence=ENOUGH) as mover,
    ):
        before = wait_for("an answer", mover.is_served)
        former = gateway_port(fabric)
        fabric.kill_gateway_daemon()
        fabric.kill_engine()
        # Who has the port now answers nobody, and the gateway takes another one.
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as squatter:
            wait_for("the port", lambda: _bound(squatter, former))
            fabric.start_gateway_daemon()
            assert gateway_port(fabric) != former
            after = wait_for("the agent to be back", mover.is_served, timeout=90)
            assert after == before
            # The same tunnel, and not one that was made anew.
            wait_for("the log", lambda: "the gateway answers again" in mover.log())
        assert "the gateway has not answered" in mover.log()
        assert fabric.request("GET", f"/api/v1/peers/{before['peer']}")["overlayIP"]


def test_a_gateway_with_another_key_gets_a_new_tunnel(tmp_path: Path) -> None:
    with (
        Fabric(tmp_path / "f") as fabric,
        service(fabric, silence=ENOUGH),
        agent(fabric, "userspace", silence=ENOUGH) as mover,
    ):
        before = wait_for("an answer", mover.is_served)
        fabric.kill_gateway_daemon()
        fabric.kill_engine()
        (fabric.directory / "gateway" / "private.key").unlink()
        fabric.start_gateway_daemon()
        assert wait_for("the agent to be back", mover.is_served, timeout=90) == before
        assert "another key" in mover.log()


def _bound(one: socket.socket, port: int) -> bool:
    try:
        one.bind(("::", port))
    except OSError:
        return False
    return True


class Named(Fabric):
    """A fabric whose gateway is told by a name, with a relay's port."""

    def __init__(self, directory: Path, relay_port: int) -> None:
        super().__init__(directory)
        self._relay_port = relay_port

    def _start_child(self, command: str, arguments: list[str], extra: dict[str, str]) -> Any:
        if command == "gateway":
            arguments = [*arguments, "--endpoint", f"gateway.test:{self._relay_port}"]
        return super()._start_child(command, arguments, extra)


@contextmanager
def behind_a_name(tmp_path: Path) -> Iterator[tuple[Fabric, Path, int]]:
    """A fabric, the hosts file of who has its name, and the port of the relay to come."""
    hosts = tmp_path / "hosts"
    write_hosts(hosts, gateway="127.0.0.1")
    port = free_port()
    with Named(tmp_path / "f", port) as fabric:
        yield fabric, hosts, port


def test_a_gateway_is_looked_up_again_by_its_name(tmp_path: Path) -> None:
    with behind_a_name(tmp_path) as (fabric, hosts, port):
        prefix, target = (*OWN_HOSTS, str(hosts)), gateway_port(fabric)
        silence = 5.0  # three times that until it is given up, and Go believes a hosts file for 5 s
        with (
            DatagramRelay("127.0.0.1", target, port) as relay,
            service(fabric, prefix, silence),
            agent(fabric, "userspace", prefix, silence) as mover,
        ):
            before = wait_for("an answer", mover.is_served)
            fabric.kill_server()  # the name alone must lead there
            relay.cut()
            with DatagramRelay("127.0.0.2", target, port):
                write_hosts(hosts, gateway="127.0.0.2")
                assert wait_for("the agent to be back", mover.is_served, timeout=90) == before
                wait_for("the log", lambda: "the gateway answers again" in mover.log())
                fabric.start_server()


def test_a_gateway_that_stays_away_costs_the_tunnel_and_not_the_identity(tmp_path: Path) -> None:
    with behind_a_name(tmp_path) as (fabric, hosts, port):
        prefix, target = (*OWN_HOSTS, str(hosts)), gateway_port(fabric)
        with DatagramRelay("127.0.0.1", target, port) as relay, ExitStack() as stack:
            stack.enter_context(service(fabric, prefix))
            mover = stack.enter_context(agent(fabric, "userspace", prefix))
            before = wait_for("an answer", mover.is_served)
            relay.cut()
            wait_for("the tunnel to be given up", lambda: "was not rebuilt" in mover.log(), 60)
            assert mover.call()["state"] in ("active", "renewing")
            with DatagramRelay("127.0.0.1", target, port):
                assert wait_for("the agent to be back", mover.is_served, timeout=90) == before
                stack.close()
