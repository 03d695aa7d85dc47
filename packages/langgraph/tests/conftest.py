"""Agents that several tests use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lattice_sdk import LatticeAgent
from lattice_sdk.testing import World


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def agent(lattice_world: World) -> Iterator[LatticeAgent]:
    """One open agent for the tests that need no life of their own."""
    with LatticeAgent(**lattice_world.settings(agent_name="shared", ttl="30m")) as agent:
        yield agent


@pytest.fixture(scope="module")
def other(lattice_world: World) -> Iterator[LatticeAgent]:
    with LatticeAgent(**lattice_world.settings(agent_name="other", ttl="30m")) as agent:
        yield agent
