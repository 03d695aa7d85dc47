"""What tests of agents' programs run, and what they look for."""

from __future__ import annotations

import contextlib
from pathlib import Path

GRANTED = "http://github-tools.lattice/"


def curl(*arguments: str) -> list[str]:
    return ["curl", "-sS", "--max-time", "10", *arguments]


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it may end meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found
