"""Agents that try each other's workspaces through real tunnels."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pytest

from conftest import World
from lattice_sdk import LatticeAgent, LatticeError, Refused
from lattice_sdk.connector import ServiceConnector
from lattice_sdk.testing.tools import ToolService


@dataclass(frozen=True)
class Side:
    """A workspace with an agent of the widest preset and a tool service on the same port."""

    agent: LatticeAgent
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
            agent = LatticeAgent(
                server=fabric.url,
                token=token,
                agent_name="coordinator",
                policy_preset="coordinator",
            )
            return Side(stack.enter_context(agent), tool.name, connector.overlay_ip)

        yield make("ws-one"), make("ws-two")


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
