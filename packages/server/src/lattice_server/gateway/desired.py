"""The state the control plane wants, as pure data: changes, their merging, deadlines in time.

Instants are seconds of :func:`lattice_sdk.clock.now`, as the engine's are: a clock that goes on
while the machine is suspended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# The engine refuses fields it does not know; a newer control plane may send more.
PEER_FIELDS = ("id", "publicKey", "address", "grants")
OPTIONAL_FIELDS = ("routes", "line")


class BadMessageError(Exception):
    """The control plane said something that is not of the protocol."""


@dataclass(frozen=True)
class Peer:
    """One peer as the engine wants it, with its deadline on this machine's clock since boot."""

    fields: dict[str, Any]
    deadline: float | None

    @classmethod
    def received(cls, wire: dict[str, Any], now: float) -> Peer:
        """A peer of a message that came at ``now`` (seconds since boot)."""
        expires_in = wire.get("expiresIn")
        fields = {name: wire[name] for name in PEER_FIELDS}
        fields |= {name: wire[name] for name in OPTIONAL_FIELDS if name in wire}
        return cls(fields, None if expires_in is None else now + float(expires_in))

    def body(self, now: float) -> dict[str, Any] | None:
        """The peer for the engine at ``now``; ``None`` when its time is over."""
        if self.deadline is None:
            return {**self.fields, "expiresIn": None}
        left = self.deadline - now
        return {**self.fields, "expiresIn": round(left, 6)} if left > 0 else None


@dataclass
class Change:
    """One step of the desired state; ``full`` replaces all of it."""

    revision: int
    full: bool = False
    upsert: dict[str, Peer] = field(default_factory=dict)
    remove: set[str] = field(default_factory=set)

    def then(self, later: Change) -> Change:
        """Both steps as one."""
        if later.full:
            return later
        upsert = {k: v for k, v in self.upsert.items() if k not in later.remove} | later.upsert
        remove = (self.remove | later.remove) - later.upsert.keys()
        return Change(later.revision, self.full, upsert, set() if self.full else remove)

    def body(self, now: float) -> dict[str, Any]:
        """The body for the engine's ``PUT`` (full) or ``PATCH /v1/state`` at ``now``."""
        bodies = {name: peer.body(now) for name, peer in self.upsert.items()}
        over = set() if self.full else {name for name, body in bodies.items() if body is None}
        return {
            "revision": self.revision,
            "upsert": [body for body in bodies.values() if body is not None],
            "remove": sorted(self.remove | over),
        }


class Desired:
    """What the engine has been told; enough to tell a new engine without the control plane."""

    def __init__(self) -> None:
        self.revision = 0
        self.synced = False
        self.peers: dict[str, Peer] = {}

    def commit(self, change: Change) -> None:
        """Remember a change that the engine has applied."""
        if change.full:
            self.peers = dict(change.upsert)
            self.synced = True
        else:
            for name in change.remove:
                self.peers.pop(name, None)
            self.peers.update(change.upsert)
        self.revision = change.revision

    def whole(self) -> Change:
        """All of it as one full change."""
        return Change(self.revision, True, dict(self.peers))

    def drop_expired(self, name: str, now: float) -> None:
        """Forget a peer that expired, unless it has been renewed meanwhile."""
        peer = self.peers.get(name)
        if peer is not None and peer.deadline is not None and peer.deadline <= now:
            del self.peers[name]


class Assembler:
    """Makes changes from messages; a sync comes in chunks, the last of which completes it."""

    def __init__(self) -> None:
        self._sync: Change | None = None

    def feed(self, message: dict[str, Any], now: float) -> Change | None:
        """The change that this message completes, if it does.

        Args:
            message: a decoded ``sync`` or ``update`` message.
            now: when it came, seconds since boot.

        Raises:
            BadMessageError: it lacks something or has a wrong type.
        """
        try:
            peers = {wire["id"]: Peer.received(wire, now) for wire in message["upsert"]}
            part = Change(int(message["revision"]), False, peers, set(message["remove"]))
            full, last = message["type"] == "sync", bool(message.get("last", True))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadMessageError(f"a state message is malformed: {error!r}") from error
        if full:
            whole = self._sync or Change(part.revision, True)
            whole.revision = part.revision
            whole.upsert.update(part.upsert)
            self._sync = None if last else whole
            return whole if last else None
        if self._sync is not None:
            # Between chunks: it belongs to the state being assembled, whose end acknowledges it.
            self._sync = self._sync.then(part)
        return part
