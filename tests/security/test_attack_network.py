"""Agents that try each other's workspaces through real tunnels."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from conftest import World
from lattice_sdk import LatticeAgent, LatticeError, Refused
from lattice_sdk.connector import ServiceConnector
from lattice_sdk.testing.tools import ToolService
from support.attempts import Attempt, command, told

AT_ONCE = 5.0  # seconds; an attempt that is let to time out takes 6
ECHO = 7100


@dataclass(frozen=True)
class Side:
    """A workspace with agents of the widest preset and a tool service on the same port."""

    agent: LatticeAgent
    neighbour: LatticeAgent
    service: str
    address: str


@pytest.fixture(scope="module")
def sides(world: World) -> Iterator[tuple[Side, Side]]:
    """Two workspaces of one fabric, with services of the same name."""
    with ExitStack() as stack:

        def make(workspace: str) -> Side:
            fabric = world.fabric
            fabric.create_workspace(workspace)
            tool = stack.enter_context(ToolService(f"tools of {workspace}"))
            token = fabric.create_service(
                "tools", [{"port": 80, "protocol": "tcp"}], workspace=workspace
            )
            connector = stack.enter_context(
                ServiceConnector(
                    fabric.url,
                    token,
                    "tools",
                    listen={80: tool.target},
                    workspace_id=workspace,
                    proxy_protocol="v1",
                )
            )
            token = fabric.create_token(kind="workspace", workspaceId=workspace)
            agent, neighbour = (
                stack.enter_context(
                    LatticeAgent(
                        server=fabric.url,
                        token=token,
                        agent_name=name,
                        policy_preset="coordinator",
                        isolation="required" if name == "neighbour" else None,
                    )
                )
                for name in ("coordinator", "neighbour")
            )
            agent.forward(ECHO, f"127.0.0.1:{stack.enter_context(echo())}", "udp")
            return Side(agent, neighbour, tool.name, connector.overlay_ip)

        yield make("ws-one"), make("ws-two")


@contextmanager
def echo() -> Iterator[int]:
    """The UDP port of a server that sends back what it gets."""
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))

        def answer() -> None:
            while (got := datagrams.recvfrom(2048))[0]:
                datagrams.sendto(*got)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield datagrams.getsockname()[1]
        datagrams.sendto(b"", datagrams.getsockname())
        thread.join()


def attempt(agent: LatticeAgent, name: str, /, **arguments: object) -> Attempt:
    done = agent.run(command(name, arguments), capture_output=True, text=True, timeout=60)
    return told(done)


def refused(agent: LatticeAgent, address: str, port: int) -> bool:
    try:
        agent.connect(address, port, timeout=5).close()
    except Refused:
        return True
    except (LatticeError, OSError):
        return False
    return False


def test_nothing_passes_between_workspaces(sides: tuple[Side, Side]) -> None:
    for own, other in (sides, sides[::-1]):
        with own.agent.http_client() as http:
            answer = http.get("http://tools.lattice/").json()
        # The same name leads to each one's own.
        assert (answer["service"], answer["client"]) == (own.service, own.agent.overlay_ip)
        with pytest.raises(Refused):
            own.agent.connect(other.address, 80)
        ports = [22, 80, 443, 8080, 65535]
        for address in (other.agent.overlay_ip, other.address):
            with ThreadPoolExecutor(5) as pool:
                tried = pool.map(partial(refused, own.agent, address), ports)
                assert all(tried), address


def test_coordinators_of_two_workspaces_do_not_find_each_other(sides: tuple[Side, Side]) -> None:
    one, two = sides
    with two.agent.listen(7000):
        assert refused(one.agent, two.agent.overlay_ip, 7000)


def test_neither_datagrams_nor_echoes_pass_between_workspaces(sides: tuple[Side, Side]) -> None:
    for own, other in (sides, sides[::-1]):
        # Within the workspace they do, else the rest would prove nothing.
        near = own.agent.overlay_ip
        for found in (
            attempt(own.neighbour, "udp", host=near, port=ECHO),
            attempt(own.neighbour, "ping", host=near, raw=False),
        ):
            assert found.reached, found.why
        addresses = (other.agent.overlay_ip, other.neighbour.overlay_ip, other.address)
        with ThreadPoolExecutor(len(addresses)) as pool:
            ping = partial(attempt, own.neighbour, "ping", raw=False)
            pings = [pool.submit(ping, host=address) for address in addresses]
            assert not any(one.result().reached for one in pings)
        for address in addresses:
            for port in (80, ECHO):
                got = attempt(own.neighbour, "udp", host=address, port=port)
                assert not got.reached, (address, port, got.why)
                assert got.seconds < AT_ONCE, "not refused but left to time out"
