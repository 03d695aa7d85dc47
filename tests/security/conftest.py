"""A sandbox, the host that it must not reach, and attempts on both sides of the wall.

Run by whoever runs pytest: CI runs this folder as root and as an ordinary user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lattice_sdk import LatticeAgent
from lattice_sdk.testing.world import World
from support.attempts import Attempt, outside
from support.inside import Inside, OfAgent, inside_exec
from support.targets import Targets, start_targets
from support.tenants import Api, Tenant, two_tenants


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    """What is there to be reached."""
    with start_targets(tmp_path_factory.mktemp("host")) as targets:
        yield targets


@pytest.fixture(scope="session")
def agent(lattice_world: World) -> Iterator[LatticeAgent]:
    """The agent whose sandbox is attacked."""
    with LatticeAgent(**lattice_world.settings(isolation="required")) as agent:
        yield agent


@pytest.fixture(scope="session", params=["agent", "lattice exec"])
def inside(request: pytest.FixtureRequest, lattice_world: World) -> Iterator[Inside]:
    """Attempts by a program in a sandbox: the agent's, and one that ``lattice exec`` set up."""
    if request.param == "agent":
        yield OfAgent(request.getfixturevalue("agent"))
    else:
        with inside_exec(lattice_world) as made:
            yield made


@pytest.fixture(scope="session")
def held(inside: Inside) -> Callable[..., Attempt]:
    """Assert that an attempt succeeds outside and fails inside; how it failed.

    ``free`` is who makes it outside, a program in no sandbox when left out.
    """

    def check(name: str, /, free: Callable[..., Attempt] = outside, **arguments: Any) -> Attempt:
        control = free(name, **arguments)
        assert control.reached, f"the attempt proves nothing, it fails outside too: {control.why}"
        caught = inside(name, **arguments)
        assert not caught.reached, f"{name} {arguments}: {caught.why}"
        return caught

    return check


@pytest.fixture(scope="session")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, Tenant, Tenant]]:
    """The API of a real fabric, our tenant and the one that attacks it.

    Failures to authenticate are not limited: attacks are to be refused for what they are.
    """
    directory = tmp_path_factory.mktemp("tenants")
    with two_tenants(directory, auth_failures_per_minute=0) as made:
        yield made


@pytest.fixture
def api(tenants: tuple[Api, Tenant, Tenant]) -> Api:
    """The API that is attacked."""
    return tenants[0]


@pytest.fixture
def ours(tenants: tuple[Api, Tenant, Tenant]) -> Tenant:
    """Who is attacked."""
    return tenants[1]


@pytest.fixture
def theirs(tenants: tuple[Api, Tenant, Tenant]) -> Tenant:
    """Who attacks."""
    return tenants[2]
