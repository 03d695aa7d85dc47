"""Agents of whichever AutoGen is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lattice_autogen.adapter import Identified
from lattice_sdk.testing import World


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make(lattice_world: World) -> Iterator[Callable[..., Any]]:
    """Makes classic agents of any class; those with an identity are closed afterwards."""
    made: list[Any] = []

    def make(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
        settings = {"llm_config": False, "human_input_mode": "NEVER"}
        settings |= lattice_world.settings(agent_name=None) if issubclass(kind, Identified) else {}
        agent = kind(*args, **{**settings, **kwargs})
        if isinstance(agent, Identified):
            made.append(agent)
        return agent

    yield make
    for agent in made:
        agent.close()
