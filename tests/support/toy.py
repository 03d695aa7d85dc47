"""A framework of a dozen lines, and its adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from lattice_sdk import LatticeAgent
from lattice_sdk.testing import Adapter, Capability

T = TypeVar("T")


class Pipeline:
    """The toy framework: functions that are called in turn."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        self.steps = steps

    def run(self) -> Any:
        """Call all steps; the last one's result."""
        result = None
        for step in self.steps:
            result = step()
        return result


@contextlib.contextmanager
def lattice_pipeline(**settings: Any) -> Iterator[LatticeAgent]:
    """The toy's adapter: an identity for the length of a block."""
    with LatticeAgent(**settings) as agent:
        yield agent


class Toy(Adapter):
    """What the suite needs to know of it."""

    name = "toy"
    capabilities = frozenset({Capability.EXCEPTIONS})

    def run(self, settings: Mapping[str, Any], work: Callable[[LatticeAgent], T]) -> T:
        with lattice_pipeline(**settings) as agent:
            return Pipeline(lambda: work(agent)).run()

    def plain(self, work: Callable[[], T]) -> T:
        return Pipeline(work).run()
