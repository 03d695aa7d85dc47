"""What tests of agents' programs run, and what they look for."""

from __future__ import annotations

GRANTED = "http://github-tools.lattice/"


def curl(*arguments: str) -> list[str]:
    return ["curl", "-sS", "--max-time", "10", *arguments]
