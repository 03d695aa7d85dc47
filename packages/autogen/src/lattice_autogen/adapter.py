"""What the generations of AutoGen share: whose code runs, and an agent that holds an identity."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

from pydantic import SecretStr

from lattice_sdk import IdentityClosed, LatticeAgent

__all__ = ["Identified", "Opener", "Settings", "acting", "current_agent"]

_agent: ContextVar[LatticeAgent | None] = ContextVar("lattice_agent", default=None)


def current_agent() -> LatticeAgent:
    """The identity of the AutoGen agent that runs the calling reply function or tool.

    Code that starts threads of its own asks before it does.

    Raises:
        IdentityClosed: no agent with an identity runs the caller.
    """
    found = _agent.get()
    if found is None:
        raise IdentityClosed(
            "no identity here: this code is not run by an AutoGen agent that has one",
            hint="Call current_agent() in a reply function or tool of such an agent",
        )
    return found


@contextmanager
def acting(agent: LatticeAgent) -> Iterator[None]:
    """What runs in the block is run by ``agent``."""
    token = _agent.set(agent)
    try:
        yield
    finally:
        _agent.reset(token)


class Settings(dict[str, Any]):
    """Keyword arguments of a :class:`LatticeAgent`, kept for copies of the agent that has them.

    A copy in this process enrolls with the same; a pickle carries no token.
    """

    NAMES: ClassVar[frozenset[str]] = frozenset(inspect.signature(LatticeAgent).parameters)

    @classmethod
    def taken_from(cls, keywords: MutableMapping[str, Any]) -> Settings:
        """Take the settings out of the keyword arguments of a constructor.

        They are ``lattice={…}`` if that is given, for classes with arguments of the same names.

        Raises:
            TypeError: ``lattice`` holds something that is no setting.
        """
        given = keywords.pop("lattice", None)
        if given is None:
            given = {name: keywords.pop(name) for name in cls.NAMES & keywords.keys()}
        if unknown := given.keys() - cls.NAMES:
            raise TypeError(f"no settings of an identity: {', '.join(sorted(unknown))}")
        settings = cls(given)
        if isinstance(settings.get("token"), str):
            settings["token"] = SecretStr(settings["token"])
        return settings

    def agent(self, name: str) -> LatticeAgent:
        """An agent that is not open yet, named after AutoGen's where the settings do not say."""
        # The Enrollment API's names are narrower (lattice_sdk.wire.Name).
        tame = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")[:128]
        return LatticeAgent(**{**self, "agent_name": self.get("agent_name") or tame or None})

    def __copy__(self) -> Settings:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Settings:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Settings, ({name: value for name, value in self.items() if name != "token"},)


class Opener:
    """Opens an agent when it is first needed."""

    def __init__(self, agent: LatticeAgent) -> None:
        self._agent = agent
        self._lock = asyncio.Lock()

    async def opened(self) -> LatticeAgent:
        """The agent, once it has been opened.

        Raises:
            LatticeError: there is no identity to be had.
        """
        if self._agent.state in ("new", "enrolling"):
            async with self._lock:
                if self._agent.state == "new":
                    await self._agent.aopen()
        return self._agent


class Identified:
    """Base of the mixins: one of AutoGen's agents that has an identity of its own.

    Attributes:
        lattice_agent: the identity.
    """

    lattice_agent: LatticeAgent
    _lattice_opener: Opener
    _lattice_settings: Settings
    # Methods by which the framework runs the agent's code.
    _lattice_methods: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Here, so that it does not matter on which side of the mixin a method is defined.
        for name in cls._lattice_methods:
            method = getattr(cls, name, None)
            if method is not None and not hasattr(method, "_lattice"):
                setattr(cls, name, _identified(method))

    def _lattice_hold(self, settings: Settings) -> None:
        self._lattice_settings = settings
        self.lattice_agent = settings.agent(str(getattr(self, "name", "")))
        self._lattice_opener = Opener(self.lattice_agent)

    async def _lattice_opened(self) -> LatticeAgent:
        return await self._lattice_opener.opened()

    def __getstate__(self) -> dict[str, Any]:
        own = ("lattice_agent", "_lattice_opener")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another agent: it has an identity of its own."""
        self.__dict__.update(state)
        self._lattice_hold(state["_lattice_settings"])


def _identified(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, run under the identity of its object."""
    run: Callable[..., Any]
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def run(self: Identified, *args: Any, **kwargs: Any) -> Any:
            agent = await self._lattice_opened()
            steps = method(self, *args, **kwargs)
            try:
                while True:
                    # Only during a step: what the caller does between two is not the agent's.
                    with acting(agent):
                        try:
                            step = await anext(steps)
                        except StopAsyncIteration:
                            return
                    yield step
            finally:
                await steps.aclose()

    elif inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def run(self: Identified, *args: Any, **kwargs: Any) -> Any:
            with acting(await self._lattice_opened()):
                return await method(self, *args, **kwargs)

    else:

        @functools.wraps(method)
        def run(self: Identified, *args: Any, **kwargs: Any) -> Any:
            with acting(self.lattice_agent):
                return method(self, *args, **kwargs)

    run._lattice = True  # type: ignore[attr-defined]
    return run
