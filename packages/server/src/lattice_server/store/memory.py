"""What is read again and again and hardly ever changes, remembered until somebody changes it."""

from __future__ import annotations

from typing import Any, Final

from lattice_server.store import schema

# What each enrollment and each renewal needs to know of its workspace.
REMEMBERED: Final = frozenset({schema.services.name, schema.workspaces.name})
MOST_REMEMBERED = 10_000


class Memory:
    """What was read of :data:`REMEMBERED` tables, as long as nobody writes to them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Any] = {}
        self._writing = False

    def get(self, kind: str, key: str) -> Any:
        """What is known, or ``None``."""
        return self._known.get((kind, key))

    def keep(self, kind: str, key: str, value: Any) -> None:
        """Remember it, unless a change is under way."""
        if self._writing:
            return
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        self._known[kind, key] = value

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    def touched(self) -> None:
        """Somebody changes one of the tables: nothing holds until that is committed or undone."""
        self._writing = True
        self._known.clear()

    def settled(self) -> None:
        """All changes are committed or undone."""
        self._writing = False
