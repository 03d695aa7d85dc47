"""What the contract's tests have in common: how work is run, what must be gone after it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from lattice_sdk.agent import LatticeAgent
from lattice_sdk.testing.adapter import Adapter
from lattice_sdk.testing.leftovers import Leftovers, alive, files
from lattice_sdk.testing.program import GRANTED_URL
from lattice_sdk.testing.running import Program
from lattice_sdk.testing.world import World

__all__ = [
    "ContractBase",
    "Seen",
    "WorkError",
    "in_process",
    "invariant",
    "look",
    "needs",
    "wait_for",
]

T = TypeVar("T")
invariant = pytest.mark.lattice_invariant
needs = pytest.mark.lattice_capability
in_process = pytest.mark.lattice_in_process
PATIENCE = 60.0  # seconds
GONE_WITHIN = 15.0  # seconds; the stated bound is 2 after a kill, here with ample slack


class WorkError(Exception):
    """What work fails with."""


@dataclass(frozen=True)
class Seen:
    """What work saw of its agent."""

    peer: str
    address: str
    client: str
    engine: int
    known: bool


class ContractBase:
    """The fixtures and helpers of the contract's tests."""

    adapter: ClassVar[type[Adapter]]
    _leftovers: Leftovers

    @pytest.fixture(autouse=True)
    def _watched(self, lattice_world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """What this process makes from now on has to be gone when an agent has left."""
        with tempfile.TemporaryDirectory(prefix="lc-") as directory:
            monkeypatch.setenv("TMPDIR", directory)
            monkeypatch.setattr(tempfile, "tempdir", directory)
            self._leftovers = Leftovers(Path(directory))
            yield

    def _run(self, world: World, work: Callable[[LatticeAgent], T], **changes: Any) -> T:
        def noted(agent: LatticeAgent) -> T:
            self._leftovers.note()
            try:
                return work(agent)
            finally:
                self._leftovers.note()

        return self.adapter().run(world.settings(**changes), noted)

    @contextlib.contextmanager
    def _program(self, world: World, mode: str) -> Iterator[Program]:
        with tempfile.TemporaryDirectory(prefix="contract-", dir="/tmp") as name:
            program = Program(self.adapter, world, mode, Path(name))
            try:
                yield program
            finally:
                program.process.kill()
                program.process.communicate()

    def _line(self, program: Program) -> dict[str, Any]:
        line = program.line()
        self._leftovers.note(program.process.pid)
        return line

    def _nothing_left(self, world: World, *seen: Seen) -> None:
        assert seen, "the work did not run"
        for one in seen:
            _wait_until_gone(world, one.peer, one.engine)
        self._nothing_left_here()

    def _nothing_left_here(self) -> None:
        wait_for("nothing to be left", lambda: not self._leftovers.found(), self._leftovers.found)

    def _program_left_nothing(self, world: World, program: Program, line: dict[str, Any]) -> None:
        _wait_until_gone(world, line["peer"], line["engine"])
        left = self._leftovers.of_program
        wait_for("nothing of the program to be left", lambda: not left(), left)
        there = partial(files, program.temporary)
        wait_for("its files to be removed", lambda: not there(), there)


def look(world: World, agent: LatticeAgent) -> Seen:
    """Use the network once."""
    with agent.http_client(timeout=PATIENCE) as http:
        client = str(http.get(GRANTED_URL).raise_for_status().json()["client"])
    known = agent.peer_id in world.peers() and agent.peer_id in world.gateway_peers()
    return Seen(agent.peer_id, agent.overlay_ip, client, agent.engine_pid or 0, known)


def wait_for(
    what: str, condition: Callable[[], object], instead: Callable[[], object] | None = None
) -> None:
    """Poll until it is so; ``instead`` says what is there instead.

    Raises:
        AssertionError: it is not so in time.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            there = f"; there is: {instead()}" if instead else ""
            raise AssertionError(f"not within {PATIENCE:.0f} s: {what}{there}")
        time.sleep(0.01)


def _wait_until_gone(world: World, peer: str, engine: int) -> None:
    began = time.monotonic()
    wait_for(f"{peer} to be gone", lambda: not world.knows(peer))
    assert time.monotonic() - began < GONE_WITHIN
    wait_for("the engine to end", lambda: not alive(engine))
