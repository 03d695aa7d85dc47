"""The real fabric for end-to-end tests: control plane, gateway, engine, tool services."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lattice_sdk import LatticeAgent
from lattice_sdk.connector import ServiceConnector
from lattice_sdk.testing.tools import ToolService
from lattice_sdk.testing.world import World as PodWorld
from lattice_sdk.testing.world import start_world
from lattice_server.fabric import Fabric
from support.node import NODE_IP, Node, left

# Time also for the gateway of a busy machine, so that what was answered is so.
PATIENT = {"gateway_wait": 15, "delete_wait": 15}


@dataclass
class World:
    """A running fabric with two designated tool services and one that is not."""

    fabric: Fabric
    services: dict[str, ToolService] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def agent(self, **settings: Any) -> LatticeAgent:
        """An agent of the world's workspace that has not enrolled yet."""
        return LatticeAgent(
            **{
                "server": self.fabric.url,
                "token": self.fabric.workspace_token,
                "agent_name": "code-executor",
                **settings,
            }
        )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def make_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A factory of worlds, as context managers."""
    from contextlib import ExitStack, contextmanager

    @contextmanager
    def make(directory: Path | None = None, **options: Any) -> Iterator[World]:
        options["server_options"] = {**PATIENT, **(options.get("server_options") or {})}
        with ExitStack() as stack:
            fabric = stack.enter_context(
                Fabric(directory or tmp_path_factory.mktemp("fabric"), **options)
            )
            world = World(fabric)
            for name in ("github-tools", "search", "payroll"):
                service = stack.enter_context(ToolService(name))
                token = fabric.create_service(
                    name, [{"port": 80, "protocol": "tcp"}], designated=name != "payroll"
                )
                connector = stack.enter_context(
                    ServiceConnector(
                        fabric.url, token, name, listen={80: service.target}, proxy_protocol="v1"
                    )
                )
                world.services[name] = service
                world.addresses[name] = connector.overlay_ip
            yield world

    return make


@pytest.fixture(scope="session")
def world(make_world: Callable[..., Any]) -> Iterator[World]:
    """One fabric for all tests that do not break it."""
    with make_world() as world:
        yield world


@pytest.fixture(scope="session")
def claude_model(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model as a tool service; the environment in which a claude command uses it."""
    from support.model import ScriptedModel, claude_environment, say

    token = world.fabric.create_service("claude-model", [{"port": 80, "protocol": "tcp"}])
    with ScriptedModel([say("Nothing is new.")]) as model:
        listen = {80: model.target}
        with ServiceConnector(world.fabric.url, token, "claude-model", listen=listen):
            home = tmp_path_factory.mktemp("home")
            yield claude_environment(home, "http://claude-model.lattice")


@pytest.fixture
def broken_world(make_world: Callable[..., Any]) -> Iterator[World]:
    """A fabric of the test's own, whose parts it may kill."""
    with make_world() as world:
        yield world


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """A node that runs pods, and leaves nothing."""
    with Node() as node:
        yield node
    assert left() == []


@pytest.fixture(scope="session")
def fabric(node: Node) -> Iterator[PodWorld]:
    """A fabric that pods can reach."""
    with (
        tempfile.TemporaryDirectory(prefix="pods-") as name,
        start_world(Path(name), NODE_IP) as world,
    ):
        yield world
