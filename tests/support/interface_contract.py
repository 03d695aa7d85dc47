"""The backend ``interface`` held to the contract; run by tests/e2e/test_interface.py in a pod."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pytest

from lattice_sdk import BackendUnavailable, LatticeAgent
from lattice_sdk.testing import Adapter, Capability, World
from lattice_sdk.testing.base import look
from lattice_sdk.testing.contract import AdapterContract

T = TypeVar("T")


class Interface(Adapter):
    name = "bare, with an interface"
    capabilities = frozenset({Capability.EXCEPTIONS})

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        with LatticeAgent(**{"backend": "interface", **settings}) as agent:
            return work(agent)

    def plain(self, work: Callable[[], T]) -> T:
        return work()


class TestInterface(AdapterContract):
    adapter = Interface

    def test_two_agents_are_two_identities(self, lattice_world: World) -> None:
        """A pod is one agent's: the second is told, and the first goes on."""

        def work(agent: LatticeAgent) -> None:
            with pytest.raises(BackendUnavailable, match="lattice0 already"):
                self._run(lattice_world, lambda _: None)
            assert look(lattice_world, agent).client == agent.overlay_ip

        self._run(lattice_world, work)
