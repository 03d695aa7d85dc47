"""What a step of the demo showed, or that it showed something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Outcome", "UnexpectedError", "expect"]


class UnexpectedError(Exception):
    """A step did not show what it claims."""


@dataclass(frozen=True)
class Outcome:
    """What a step showed.

    Attributes:
        name: of the step, stable.
        claim: what it was to show.
        ok: whether it did.
        shown: what was seen, or what went wrong.
        figures: measured values; the unit is in the name.
    """

    name: str
    claim: str
    ok: bool
    shown: str
    figures: Mapping[str, float] = field(default_factory=dict)


def expect(condition: bool, otherwise: str) -> None:
    """Part of what a step claims.

    Raises:
        UnexpectedError: with ``otherwise``, when it does not hold.
    """
    if not condition:
        raise UnexpectedError(otherwise)
