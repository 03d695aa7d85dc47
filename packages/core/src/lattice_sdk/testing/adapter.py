"""What an adapter's author says about the adapter, so that the suite can drive it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from lattice_sdk.agent import LatticeAgent

T = TypeVar("T")
Settings = Mapping[str, Any]


class Capability(StrEnum):
    """What not every framework can do. Declared, so that it is tested; never guessed."""

    ASYNC = "async"
    """:meth:`Adapter.arun` works, and can be cancelled."""
    HOLD = "hold"
    """:meth:`Adapter.hold` works: an identity may live in an object that is then forgotten."""
    EXCEPTIONS = "exceptions"
    """An exception of the work reaches the caller of :meth:`Adapter.run` as it was raised."""


class Adapter(ABC):
    """One adapter, as the suite sees it. Made without arguments, also in other processes.

    ``settings`` are keyword arguments of :class:`lattice_sdk.LatticeAgent`, ``work`` is what the
    agent does: the framework calls it once, from where it calls the code of an agent (a node, a
    reply function, a tool).
    """

    name: ClassVar[str]
    """For the report."""
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    in_process: ClassVar[bool] = True
    """The identity belongs to the process that calls :meth:`run`. Where it belongs to something
    else, a pod say, the tests of this process's signals, exits and forks are not collected: its own
    belong in their place."""

    @abstractmethod
    def run(self, settings: Settings, work: Callable[[LatticeAgent], T]) -> T:
        """Enter, let the framework call ``work`` with its agent, leave; what ``work`` returned."""

    @abstractmethod
    def plain(self, work: Callable[[], T]) -> T:
        """The same run of the framework without Lattice: what :meth:`run` must not change."""

    async def arun(self, settings: Settings, work: Callable[[LatticeAgent], Awaitable[T]]) -> T:
        """:meth:`run` for async programs."""
        raise NotImplementedError(f"{self.name} declares no {Capability.ASYNC}")

    def hold(self, settings: Settings) -> tuple[object, Callable[[], LatticeAgent]]:
        """Enter and do not leave.

        Returns the object whose end must end the identity, and a function that gives the agent
        without keeping that object alive.
        """
        raise NotImplementedError(f"{self.name} declares no {Capability.HOLD}")
