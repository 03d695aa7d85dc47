"""Programs of an agent have its network and no other."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from conftest import World
from lattice_sdk import (
    DestinationUnreachable,
    LatticeAgent,
    Refused,
    direct,
)
from support.waiting import wait_for
from support.wrapped import GRANTED, curl


@pytest.fixture(scope="module")
def agent(world: World) -> Iterator[LatticeAgent]:
    """One whose programs are isolated."""
    with world.agent(isolation="required") as agent:
        yield agent


def test_program_reaches_a_granted_service_from_the_agents_address(
    world: World, agent: LatticeAgent
) -> None:
    done = agent.run(curl(GRANTED), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["client"] == agent.overlay_ip
    assert agent.isolation == "namespace"
    assert agent.backend == "netns"


def test_program_reaches_nothing_else(world: World, agent: LatticeAgent) -> None:
    payroll, host = world.addresses["payroll"], socket.create_server(("127.0.0.1", 0))
    with host:
        outside = f"http://127.0.0.1:{host.getsockname()[1]}/"
        for target in (f"http://{payroll}/", outside, world.fabric.url, "http://169.254.169.254/"):
            done = agent.run(curl(target), capture_output=True, text=True)
            assert done.returncode == 7, f"{target}: {done}"


def test_what_a_program_was_refused_is_on_record(world: World, agent: LatticeAgent) -> None:
    """Also what lies past the overlay: it has no other way."""
    agent.run(curl("http://198.51.100.7:4444/"), capture_output=True)
    path = f"/api/v1/events?type=denied&peerId={agent.peer_id}"

    def recorded() -> bool:
        events = world.fabric.request("GET", path)["items"]
        return any(event["data"].get("destination") == "198.51.100.7" for event in events)

    wait_for("the attempt to be in the event log", recorded)


def test_programs_of_one_agent_share_a_loopback(agent: LatticeAgent) -> None:
    """And it is not the machine's."""
    with socket.socket() as reserved:  # nobody else's on this machine, so that none answers there
        reserved.bind(("127.0.0.1", 0))
        port = str(reserved.getsockname()[1])
        with agent.popen(
            [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as server:
            ask = curl("-o", "/dev/null", "--retry-connrefused", "--retry", "60")
            ask += ["--retry-delay", "1", f"http://127.0.0.1:{port}/"]
            done = agent.run(ask, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(reserved.getsockname(), 5)
            server.kill()


def test_two_agents_programs_are_two_identities(world: World, agent: LatticeAgent) -> None:
    with world.agent(isolation="required") as other:
        seen = [
            json.loads(each.run(curl(GRANTED), capture_output=True, check=True).stdout)["client"]
            for each in (agent, other)
        ]
        assert seen == [agent.overlay_ip, other.overlay_ip]
        done = agent.run(curl(f"http://{other.overlay_ip}/"), capture_output=True)
        assert done.returncode == 7


def test_names_follow_a_renewal(world: World) -> None:
    """A service that comes later is known to programs that run already."""
    with world.agent(isolation="required", ttl="1m") as agent:
        with agent.popen(
            ["sh", "-c", "read -r _; cat /etc/hosts"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as running:
            ports = [{"port": 80, "protocol": "tcp"}]
            world.fabric.create_service("latecomer", ports)
            agent.renew()
            told = running.communicate("go\n", timeout=20)[0]
        world.fabric.request("DELETE", "/api/v1/services/latecomer?workspaceId=dev")
    assert "latecomer.lattice" in told
    assert "github-tools.lattice" in told


def test_socket_of_connect_lives_in_the_namespace(world: World, agent: LatticeAgent) -> None:
    with agent.connect("github-tools.lattice", 80) as stream:
        assert stream.getsockname()[0] == agent.overlay_ip
        assert stream.getpeername() == (world.addresses["github-tools"], 80)
        stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"200 OK" in stream.recv(4096)


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("198.51.100.7", 443, "does not allow tcp to 198.51.100.7:443"),
        ("GITHUB-TOOLS.lattice.", 81, "does not allow tcp to GITHUB-TOOLS.lattice.:81"),
        ("::ffff:198.51.100.7", 443, "does not allow tcp"),
        ("attacker.example", 443, "there is no DNS in the tunnel"),
        ("2001:db8::1", 443, "there is no IPv6 in the tunnel"),
    ],
)
def test_refusals_of_connect_say_why(
    agent: LatticeAgent, host: str, port: int, sentence: str
) -> None:
    with pytest.raises(Refused) as refusal:
        agent.connect(host, port)
    assert sentence in str(refusal.value)
    assert "github-tools.lattice:80" in str(refusal.value)
    assert refusal.value.preset == "sandboxed"
    assert refusal.value.destination == f"{host}:{port}"


def test_refusals_are_worded_as_the_proxys(world: World, agent: LatticeAgent) -> None:
    payroll = world.addresses["payroll"]
    with pytest.raises(Refused) as direct:
        agent.connect(payroll, 80)
    with agent.http_client() as http, pytest.raises(Refused) as proxied:
        http.get(f"http://{payroll}/")
    assert str(direct.value) == str(proxied.value)


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ECONNRESET])
def test_reset_is_no_lost_tunnel(world: World, agent: LatticeAgent, number: int) -> None:
    """Also where the other end had taken the connection already."""

    def told(host: str) -> Exception:
        error = OSError(number, os.strerror(number))
        return direct.explain(agent._life, error, host, 80)

    assert isinstance(told("github-tools.lattice"), DestinationUnreachable)
    assert isinstance(told(world.addresses["payroll"]), Refused)


def test_granted_but_not_listening_is_no_refusal(world: World) -> None:
    with contextlib.ExitStack() as stack:
        closed = stack.enter_context(socket.socket())  # it has the port, and does not listen
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        token = world.fabric.create_service("deaf", [{"port": 80, "protocol": "tcp"}])
        from lattice_sdk import ServiceConnector

        stack.enter_context(
            ServiceConnector(world.fabric.url, token, "deaf", listen={80: f"127.0.0.1:{port}"})
        )
        agent = stack.enter_context(world.agent(isolation="required"))
        try:
            stream = agent.connect("deaf.lattice", 80)
        except DestinationUnreachable:
            return
        # The connector takes the connection before it knows that nobody listens.
        with stream, contextlib.suppress(ConnectionResetError):
            assert stream.recv(1) == b""
