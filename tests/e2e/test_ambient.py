"""A program in a sandbox that uses the SDK finds its identity instead of enrolling again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import World
from lattice_sdk import LatticeAgent, TunnelFailed

BEGINNING = """
import asyncio, json, sys
from lattice_sdk import *
"""


@pytest.fixture(scope="module")
def agent(world: World) -> Iterator[LatticeAgent]:
    """The one whose identity programs have."""
    with world.agent(isolation="required", policy_preset="coordinator") as agent:
        yield agent


def inside(agent: LatticeAgent, code: str, **settings: Any) -> Any:
    """What a program prints that uses the SDK in the agent's sandbox, as JSON."""
    program = BEGINNING + textwrap.dedent(code)
    environment = {"PATH": os.environ["PATH"]}
    done = agent.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        **settings,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_identity_is_the_sandboxs_whatever_is_asked_for(agent: LatticeAgent) -> None:
    code = """
    with LatticeAgent(server="http://127.0.0.1:1", token="lt-x", agent_name="other",
                      policy_preset="isolated", backend="userspace") as own:
        print(json.dumps([own.peer_id, own.overlay_ip, own.backend, own.isolation, own.state,
                          own.expires_at.isoformat(), own.engine_pid, own.proxy_env(),
                          [s.name for s in own.services], str(own.wireguard_config)]))
        assert 0 < own.remaining < 3700, own.remaining
    """
    assert inside(agent, code) == [
        agent.peer_id,
        agent.overlay_ip,
        "ambient",
        "namespace",
        "active",
        agent.expires_at.isoformat(),
        None,
        {},
        [service.name for service in agent.services],
        "None",
    ]


def test_no_setting_is_needed(agent: LatticeAgent) -> None:
    code = "print(json.dumps(LatticeAgent().open().peer_id))"
    assert inside(agent, code) == agent.peer_id


def test_leaving_it_leaves_the_identity(world: World, agent: LatticeAgent) -> None:
    code = """
    own = LatticeAgent().open()
    own.close()
    own.close()
    async def main():
        async with LatticeAgent() as second:
            return second.peer_id
    try:
        own.connect("github-tools.lattice", 80)
    except IdentityClosed:
        print(json.dumps([own.state, asyncio.run(main())]))
    """
    assert inside(agent, code) == ["closed", agent.peer_id]
    with agent.http_client() as http:
        assert http.get("http://github-tools.lattice/").status_code == 200


def test_traffic_is_plain(agent: LatticeAgent) -> None:
    code = """
    async def by_async_client(own):
        async with own.async_http_client() as http:
            return (await http.get("http://github-tools.lattice/")).json()["client"]
    with LatticeAgent() as own:
        with own.http_client() as http:
            first = http.get("http://github-tools.lattice/").json()["client"]
        with own.connect("github-tools.lattice", 80) as stream:
            second = stream.getsockname()[0]
        print(json.dumps([first, second, asyncio.run(by_async_client(own))]))
    """
    assert inside(agent, code) == [agent.overlay_ip] * 3


def test_refusals_are_explained(world: World, agent: LatticeAgent) -> None:
    code = f"""
    import httpx
    found = []
    def note(call, *arguments):
        try:
            call(*arguments)
        except Refused as refusal:
            by_httpx = isinstance(refusal, httpx.ConnectError)
            found.append([str(refusal), refusal.destination, by_httpx])
    async def by_async_client(own):
        async with own.async_http_client() as http:
            await http.get("http://198.51.100.7/")
    with LatticeAgent() as own, own.http_client() as http:
        note(own.connect, "{world.addresses["payroll"]}", 80)
        note(http.get, "http://{world.addresses["payroll"]}/")
        note(http.get, "http://attacker.example/")
        note(lambda: asyncio.run(by_async_client(own)))
    print(json.dumps(found))
    """
    direct, client, name, past = inside(agent, code)
    assert client == [direct[0], direct[1], True]
    assert "does not allow tcp to" in direct[0]
    assert "coordinator" in direct[0]
    assert "there is no DNS in the tunnel" in name[0]
    assert past[1:] == ["198.51.100.7:80", True]


@pytest.mark.parametrize(
    "call",
    [
        "own.renew()",
        "own.delegate_sync('x')",
        "asyncio.run(own.delegate('x'))",
        "own.forward(80, '127.0.0.1:80')",
    ],
)
def test_what_needs_a_credential_is_refused(agent: LatticeAgent, call: str) -> None:
    code = f"""
    with LatticeAgent() as own:
        try:
            {call}
        except NotPermitted as error:
            print(json.dumps([error.code, error.hint is not None]))
    """
    assert inside(agent, code) == ["inside_sandbox", True]


def test_programs_of_a_program_have_the_same_network(agent: LatticeAgent) -> None:
    code = """
    program = "from lattice_sdk import *; print(LatticeAgent().open().peer_id, end='')"
    with LatticeAgent() as own:
        done = own.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        bare = [own.wrap(["echo", "hello"], cwd="/")[-2:]]
        try:
            own.popen(["no-such-program"])
        except FileNotFoundError:
            print(json.dumps([done.stdout, *bare]))
    """
    assert inside(agent, code) == [agent.peer_id, ["echo", "hello"]]


def test_server_inside_is_reached_at_the_overlay_address(world: World, agent: LatticeAgent) -> None:
    code = """
    with LatticeAgent() as own, own.listen(8123) as listener:
        print(json.dumps(listener.getsockname()), flush=True)
        connection, source = listener.accept()
        with connection:
            connection.sendall(source[0].encode())
    """
    program = BEGINNING + textwrap.dedent(code)
    with agent.popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address, port = json.loads(server.stdout.readline())
        assert (address, port) == (agent.overlay_ip, 8123)
        with (
            world.agent(policy_preset="coordinator", isolation="proxy") as other,
            other.connect(address, port) as stream,
        ):
            assert stream.recv(64).decode() == other.overlay_ip
        assert server.wait(20) == 0


def test_renewals_are_seen_inside(world: World) -> None:
    code = """
    with LatticeAgent() as own:
        first = own.expires_at
        print("up", flush=True)
        sys.stdin.readline()
        print(json.dumps([own.expires_at > first, own.state, own.remaining > 0]))
    """
    program = BEGINNING + textwrap.dedent(code)
    with (
        world.agent(isolation="required", ttl="1m") as agent,
        agent.popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        agent.renew("10m")
        assert json.loads(process.communicate("go\n", timeout=20)[0]) == [True, "active", True]


def test_expiry_is_seen_inside(world: World) -> None:
    from lattice_sdk.testing.gate import Gate

    code = """
    import time
    with LatticeAgent() as own:
        print("up", flush=True)
        while own.state == "active":
            time.sleep(0.02)
        try:
            own.connect("github-tools.lattice", 80)
        except IdentityExpired as error:
            print(json.dumps([own.state, own.remaining, error.peer_id]))
    """
    program = BEGINNING + textwrap.dedent(code)
    with (
        Gate(world.fabric.url) as gate,
        world.agent(isolation="required", ttl="8s", server=gate.url) as agent,
        agent.popen([sys.executable, "-c", program], stdout=-1, text=True) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        gate.close()
        told = json.loads(process.communicate(timeout=30)[0])
        assert told == ["expired", 0.0, agent.peer_id]


def test_variable_alone_makes_no_sandbox(
    agent: LatticeAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """One that was left in an environment must not pass the host's network for a tunnel."""
    from lattice_sdk.sandbox.facts import facts_of

    file = tmp_path / "identity.json"
    monkeypatch.setenv("LATTICE_SANDBOX", str(file))
    with pytest.raises(TunnelFailed, match="Unset LATTICE_SANDBOX"):
        LatticeAgent().open()
    file.write_text(json.dumps(facts_of(agent._identity(), 60)))
    with pytest.raises(TunnelFailed, match=f"the address {agent.overlay_ip}") as failure:
        LatticeAgent().open()
    assert failure.value.code == "no_sandbox"
