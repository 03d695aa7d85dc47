"""Presets as data: a word for words. Pure.

A preset says in egress words where its agents may go, and in ingress words who may come to them.
The three that every workspace has are data like those that a workspace defines for itself.

============ ============================================================================
egress       what agents may reach
============ ============================================================================
services     the workspace's designated services, on their ports
service:NAME one service of the workspace, designated or not
agents       agents of the workspace that accept ingress from agents
allow        what the agent's own enrollment names in ``allow``, as far as its token permits
============ ============================================================================

============ ============================================================================
ingress      whom agents accept
============ ============================================================================
agents       agents of the workspace
============ ============================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

SERVICES, AGENTS, ALLOW = "services", "agents", "allow"
ONE_SERVICE = "service:"
EGRESS_WORDS: Final = (SERVICES, ONE_SERVICE + "NAME", AGENTS, ALLOW)
INGRESS_WORDS: Final = (AGENTS,)
NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")  # the store keeps 32 characters
_SERVICE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Preset:
    """The words of one preset."""

    egress: frozenset[str] = frozenset()
    ingress: frozenset[str] = frozenset()

    @property
    def own_list(self) -> bool:
        """Whether its agents may bring an allow list."""
        return ALLOW in self.egress

    @property
    def accepts_agents(self) -> bool:
        """Whether agents of the workspace may come to its agents."""
        return AGENTS in self.ingress

    def uses(self, service: str, *, designated: bool) -> bool:
        """Whether its agents may reach this service without naming it themselves."""
        return (designated and SERVICES in self.egress) or ONE_SERVICE + service in self.egress


Presets = Mapping[str, Preset]

BUILT_IN: Final[Presets] = {
    "sandboxed": Preset(frozenset({SERVICES})),
    "coordinator": Preset(frozenset({SERVICES, AGENTS}), frozenset({AGENTS})),
    "isolated": Preset(frozenset({ALLOW})),
}
NOTHING: Final = Preset()


def presets_of(document: Mapping[str, Any] | None) -> Presets:
    """All presets of a workspace with this policy document."""
    own = (document or {}).get("presets") or {}
    if not own:
        return BUILT_IN
    made = {
        name: Preset(frozenset(words.get("egress", ())), frozenset(words.get("ingress", ())))
        for name, words in own.items()
    }
    return made | dict(BUILT_IN)


def check_name(name: str) -> str:
    """The name of a workspace's own preset.

    Raises:
        ValueError: it is none, or one of those that every workspace has.
    """
    if name in BUILT_IN:
        raise ValueError(f"{name} is what it is in every workspace; choose another name")
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a preset: a to z, 0 to 9 and -, at most 32")
    return name


def check_words(words: Iterable[str], direction: str) -> list[str]:
    """Words of one direction, sorted.

    Args:
        words: as they were written.
        direction: ``egress`` or ``ingress``.

    Raises:
        ValueError: one of them is no word.
    """
    known = EGRESS_WORDS if direction == "egress" else INGRESS_WORDS
    for word in words:
        one = direction == "egress" and word.startswith(ONE_SERVICE)
        if word not in known and not (one and _SERVICE_NAME.fullmatch(word[len(ONE_SERVICE) :])):
            raise ValueError(f"{word!r} is no word of {direction}: {', '.join(known)}")
    return sorted(set(words))
