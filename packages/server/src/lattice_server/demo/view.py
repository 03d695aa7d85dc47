"""How the demo tells its steps: a live view in a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.status import Status

    from lattice_server.demo.outcome import Outcome

__all__ = ["JsonView", "TextView", "View"]

INDENT = 4


class View(Protocol):
    """Told of the steps as they happen."""

    def begin(self, claim: str) -> None:
        """A step starts."""

    def say(self, text: str) -> None:
        """What the running step waits for."""

    def end(self, outcome: Outcome) -> None:
        """The step is over."""

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """All steps are over."""


class TextView:
    """For people: each step as it ends, the running one with a spinner where it can be drawn."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._status: Status | None = None
        self._claim = ""
        self._started = time.monotonic()
        self._console.print("[bold]Lattice[/]: an agent that obeys an injected prompt\n")

    def begin(self, claim: str) -> None:
        """See :class:`View`."""
        self._claim = claim
        if self._console.is_terminal:
            self._status = self._console.status(claim)
            self._status.start()

    def say(self, text: str) -> None:
        """See :class:`View`."""
        if self._status is not None:
            self._status.update(f"{self._claim}: {text}")

    def end(self, outcome: Outcome) -> None:
        """See :class:`View`."""
        from rich.markup import escape
        from rich.padding import Padding
        from rich.text import Text

        self._stop()
        mark = "[green]✓[/]" if outcome.ok else "[red]✗[/]"
        if self._console.encoding.lower() not in ("utf-8", "utf8"):
            mark = "[green]ok[/]" if outcome.ok else "[red]FAILED[/]"
        self._console.print(f"{mark} [bold]{escape(outcome.claim)}[/]")
        shown = Text(outcome.shown, style="dim")
        if self._console.is_terminal:
            self._console.print(Padding(shown, (0, 0, 0, INDENT)))
        else:  # for logs and grep: one line each, however long
            for line in shown.plain.splitlines():
                print(" " * INDENT + line, file=self._console.file)

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """See :class:`View`."""
        took = time.monotonic() - self._started
        if outcomes and all(outcome.ok for outcome in outcomes):
            self._console.print(
                f"\nAll {len(outcomes)} steps shown in {took:.0f} s. "
                "For your own agent: [bold]lattice dev[/]"
            )
        else:
            self._console.print("\n[red]The demo failed[/]; what was started has been ended.")

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


class JsonView:
    """For programs: one JSON document at the end."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def begin(self, claim: str) -> None:
        """See :class:`View`."""

    def say(self, text: str) -> None:
        """See :class:`View`."""

    def end(self, outcome: Outcome) -> None:
        """See :class:`View`."""

    def close(self, outcomes: Sequence[Outcome]) -> None:
        """See :class:`View`."""
        report = {
            "ok": bool(outcomes) and all(outcome.ok for outcome in outcomes),
            "seconds": round(time.monotonic() - self._started, 3),
            "uid": os.getuid(),
            "steps": [asdict(outcome) for outcome in outcomes],
        }
        print(json.dumps(report, indent=2))


@contextmanager
def shown(view: TextView | JsonView) -> Iterator[View]:
    """The view, with the terminal as it was afterwards."""
    try:
        yield view
    finally:
        if isinstance(view, TextView):
            view._stop()
