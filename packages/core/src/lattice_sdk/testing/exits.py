"""Invariant 3: after leaving, by whatever road, nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from typing import Any

import pytest

from lattice_sdk.agent import LatticeAgent
from lattice_sdk.testing import base
from lattice_sdk.testing.adapter import Capability
from lattice_sdk.testing.base import (
    ContractBase,
    Seen,
    WorkError,
    in_process,
    invariant,
    look,
    needs,
)
from lattice_sdk.testing.world import World

__all__ = ["ExitContract"]


class ExitContract(ContractBase):
    """Return, exception, cancellation, signals, garbage collection, interpreter exit, fork."""

    @invariant(3)
    def test_return_leaves_nothing(self, lattice_world: World) -> None:
        """The ordinary end."""
        self._nothing_left(
            lattice_world, self._run(lattice_world, lambda agent: look(lattice_world, agent))
        )

    @invariant(3)
    def test_exception_leaves_nothing(self, lattice_world: World) -> None:
        """Work that raises."""
        seen: list[Seen] = []

        def work(agent: LatticeAgent) -> None:
            seen.append(look(lattice_world, agent))
            raise WorkError("on purpose")

        with contextlib.suppress(Exception):
            self._run(lattice_world, work)
        self._nothing_left(lattice_world, *seen)

    @invariant(3)
    @needs(Capability.ASYNC)
    def test_cancellation_leaves_nothing(self, lattice_world: World) -> None:
        """A task that is cancelled in the middle of its work."""

        async def main() -> Seen:
            seen: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()

            async def work(agent: LatticeAgent) -> None:
                self._leftovers.note()
                seen.set_result(await asyncio.to_thread(look, lattice_world, agent))
                await asyncio.Event().wait()

            task = asyncio.create_task(self.adapter().arun(lattice_world.settings(), work))
            waited: set[asyncio.Future[Any]] = {task, seen}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED, timeout=base.PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return seen.result()

        self._nothing_left(lattice_world, asyncio.run(main()))

    @invariant(3)
    @needs(Capability.HOLD)
    def test_forgetting_leaves_nothing(self, lattice_world: World) -> None:
        """Garbage collection of what was never left."""
        held, agent = self.adapter().hold(lattice_world.settings())
        seen = look(lattice_world, agent())
        self._leftovers.note()
        del held, agent
        gc.collect()
        self._nothing_left(lattice_world, seen)

    @invariant(3)
    @in_process
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    def test_signal_leaves_nothing(self, lattice_world: World, number: signal.Signals) -> None:
        """A process that is ended while it works."""
        with self._program(lattice_world, "wait") as program:
            line = self._line(program)
            program.process.send_signal(number)
            # The process itself may linger: Python waits for threads after SIGINT, and work may be
            # in one. The identity does not.
            self._program_left_nothing(lattice_world, program, line)
            if number != signal.SIGINT:
                assert program.process.wait(base.PATIENCE) == -number

    @invariant(3)
    @in_process
    def test_interpreter_exit_during_work_leaves_nothing(self, lattice_world: World) -> None:
        """A program whose main thread ends while an agent works in another one."""
        with self._program(lattice_world, "exit") as program:
            line = self._line(program)
            assert program.process.wait(base.PATIENCE) == 0, program.errors()
            self._program_left_nothing(lattice_world, program, line)

    @invariant(3)
    @in_process
    @needs(Capability.HOLD)
    def test_interpreter_exit_leaves_nothing(self, lattice_world: World) -> None:
        """A program that ends without leaving."""
        with self._program(lattice_world, "hold") as program:
            line = self._line(program)
            assert program.process.wait(base.PATIENCE) == 0, program.errors()
            self._program_left_nothing(lattice_world, program, line)

    @invariant(3)
    @in_process
    def test_forked_child_takes_nothing_along(self, lattice_world: World) -> None:
        """The end of a forked child does not end its parent's identity."""
        with self._program(lattice_world, "fork") as program:
            before, after = self._line(program), self._line(program)
            assert after == before
            assert after["client"] == after["address"]
            assert program.process.wait(base.PATIENCE) == 0, program.errors()
            self._program_left_nothing(lattice_world, program, after)
