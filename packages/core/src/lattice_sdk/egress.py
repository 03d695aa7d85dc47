"""The egress connector of a workspace: host names that agents may reach, and nothing else.

The control plane says which names are served at which overlay addresses, the engine carries the
flows. Enrollments wait until the connector has said that it serves what it was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lattice_sdk.agent import Face
from lattice_sdk.clock import now
from lattice_sdk.companion import Companion

if TYPE_CHECKING:
    from datetime import timedelta

    from pydantic import SecretStr

    from lattice_sdk.backends import Tunnel
    from lattice_sdk.lifecycle import Lifecycle

log = logging.getLogger("lattice.egress")

NAME = "egress"
# Seconds. A question is given up after ten; this long it may stay without news.
PATIENCE = 8.0
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
LOOK = 1.0  # between looks at what was refused
# What an agent tries again and again is told once, and its repetitions once a minute.
REPEAT = 60.0
REPORT = 100  # refusals at most in one report


class EgressConnector(Face):
    """Serves the host names of its workspace's ``allow`` lists, until it is closed.

    ::

        with EgressConnector(server, token):
            ...

    Args:
        server: URL of the control plane; ``LATTICE_SERVER`` when ``None``.
        token: service token of the egress connector, or an admin's.
        name: of the connector, as it was added.
        workspace_id: the token's workspace when left out.
        ttl: life from one renewal to the next.
        verify: file of certificate authorities for the control plane.
        timeout: seconds until opening is given up.

    Raises:
        ConfigurationError: a setting is missing or wrong.
    """

    def __init__(
        self,
        server: str | None,
        token: str | SecretStr | None,
        name: str = NAME,
        *,
        workspace_id: str | None = None,
        ttl: str | timedelta | None = None,
        verify: Path | str | bool | None = None,
        timeout: float | None = None,
    ) -> None:
        from lattice_sdk.terms import make_terms

        super().__init__(
            make_terms(
                server=server,
                token=token,
                workspace=workspace_id,
                backend="userspace",
                verify=verify,
                timeout=timeout,
                request={"agent_name": name, "ttl": ttl},
                service=True,
            ),
            RouteServer(),
        )


class RouteServer(Companion):
    """Keeps the engine at the routes that the control plane wants."""

    router = True

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._told: dict[tuple[Any, ...], float] = {}

    async def tunnel_up(self, life: Lifecycle, tunnel: Tunnel) -> None:
        """Serve what there is to serve now, then follow."""
        await self.tunnel_down()
        served = await _apply(life, tunnel, None, 0.0)
        self._tasks = [
            asyncio.create_task(self._follow(life, tunnel, served)),
            asyncio.create_task(self._report(life, tunnel)),
        ]

    async def tunnel_down(self) -> None:
        """Stop following."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self, life: Lifecycle, tunnel: Tunnel, served: int | None) -> None:
        from lattice_sdk.enrollment import ENDED

        pause = FIRST_PAUSE
        while True:
            try:
                served = await _apply(life, tunnel, served, PATIENCE)
                pause = FIRST_PAUSE
                continue
            except ENDED as error:
                log.warning("the control plane does not know this connector any more: %s", error)
                life.hasten()  # a renewal finds out what is the matter
                served = None
            except Exception as error:
                log.warning("the routes are not followed at the moment: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _report(self, life: Lifecycle, tunnel: Tunnel) -> None:
        waiting: dict[tuple[Any, ...], dict[str, Any]] = {}
        while True:
            await asyncio.sleep(LOOK)
            try:
                for refusal in await tunnel.request("refusals"):
                    key = tuple(value for name, value in refusal.items() if name != "times")
                    known = waiting.get(key)
                    refusal["times"] += known["times"] if known else 0
                    waiting[key] = refusal
                due = [key for key in waiting if now() - self._told.get(key, -REPEAT) >= REPEAT]
                if not due:
                    continue
                await life.call_control_plane(
                    "POST", "refusals", {"refusals": [waiting[key] for key in due[:REPORT]]}
                )
                for key in due[:REPORT]:
                    del waiting[key]
                    self._told[key] = now()
                self._told = {k: at for k, at in self._told.items() if now() - at < REPEAT}
            except Exception as error:
                log.debug("refused flows are not reported at the moment: %s", error)


async def _apply(life: Lifecycle, tunnel: Tunnel, served: int | None, wait: float) -> int:
    """Ask for the routes, as soon as they are others than those served, and serve them."""
    body: dict[str, Any] = {"wait": wait}
    if served is not None:
        body["applied"] = served
    routes = await life.call_control_plane("POST", "routes", body)
    revision = int(routes["revision"])
    if revision != served:
        await tunnel.request(
            "put_routes", {name: routes[name] for name in ("names", "privateTargets")}
        )
        log.info("serving %d host names, revision %d", len(routes["names"]), revision)
    return revision
