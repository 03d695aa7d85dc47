"""The hub: what has changed, in order, towards the connected gateway, and what it acknowledged.

Level-triggered: a gateway that connects gets everything, one that is slow gets the newest state of
each peer once. A revision counts up with every change and never goes back, also over restarts.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lattice_server.clock import now_ms
from lattice_server.metrics import Metrics
from lattice_server.policy import Grant

log = logging.getLogger("lattice.hub")

PEERS_PER_MESSAGE = 1000
# Below the 1 MiB that WebSocket libraries accept by default.
BYTES_PER_MESSAGE = 768 * 1024
# Of wireguard-go, which is under every gateway of ours: MaxPeers in its device/constants.go. The
# kernel's WireGuard takes 2^20 (MAX_PEERS_PER_DEVICE in drivers/net/wireguard/messages.h).
MAX_PEERS = 1 << 16


@dataclass(frozen=True, slots=True)
class PeerObject:
    """A peer as the gateway has to have it. ``expires_at`` is in ms since the epoch.

    ``routes`` are further addresses that lead to it, and ``line`` is the address of the agent that
    it comes from in the end by delegation: what one agent may take of the gateway counts for all of
    its line.
    """

    id: str
    public_key: str
    address: str
    expires_at: int | None
    grants: tuple[Grant, ...] = ()
    routes: tuple[str, ...] = ()
    line: str | None = None

    def render(self, now: int) -> str:
        """The JSON of the peer, with its remaining life counted from ``now``."""
        life = "null" if self.expires_at is None else f"{(self.expires_at - now) / 1000:.3f}"
        routes = f'"routes":{json.dumps(self.routes)},' if self.routes else ""
        line = f'"line":"{self.line}",' if self.line else ""
        return (
            f'{{"id":"{self.id}","publicKey":"{self.public_key}","address":"{self.address}",'
            f'{line}{routes}"expiresIn":{life},"grants":{_grants_json(self.grants)}}}'
        )


@lru_cache(maxsize=4096)
def _grants_json(grants: tuple[Grant, ...]) -> str:
    return json.dumps(
        [{"to": g.to, "protocol": g.protocol, "port": g.port} for g in grants],
        separators=(",", ":"),
    )


@dataclass(frozen=True, slots=True)
class GatewayInfo:
    """What a gateway says of itself. ``max_peers`` is how many peers its WireGuard takes."""

    name: str
    public_key: str
    endpoint: str
    version: str
    max_peers: int = MAX_PEERS


class Stream:
    """The outgoing side of one gateway's connection: what it has yet to be told.

    Args:
        info: of the gateway.
        state: everything, as the store has it at the revision that the stream begins with.
    """

    def __init__(self, info: GatewayInfo, state: Sequence[PeerObject]) -> None:
        self.info = info
        self.synced = False
        self.closed = asyncio.Event()
        self.acknowledged = self._revision = 0
        self._sync: Sequence[PeerObject] | None = state
        self._synced_at = 0  # the revision of that state
        self._upsert: dict[str, PeerObject] = {}
        self._remove: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._wake.set()
        self._acked = asyncio.Event()

    def begin(self, revision: int) -> None:
        """From here on changes are added; the state is that of this revision."""
        self.acknowledged = revision - 1
        self._revision = self._synced_at = revision

    def add(self, revision: int, upsert: Iterable[PeerObject], remove: Iterable[str]) -> None:
        """Queue a change; an older one of the same peer that is not sent yet is dropped."""
        for peer in upsert:
            self._remove.pop(peer.id, None)
            self._upsert[peer.id] = peer
        for peer_id in remove:
            self._upsert.pop(peer_id, None)
            self._remove[peer_id] = None
        self._revision = revision
        self._wake.set()

    def acknowledge(self, revision: int) -> None:
        """Note what the gateway has applied."""
        self.acknowledged = max(self.acknowledged, revision)
        self._acked.set()

    async def batch(self) -> tuple[int, list[str]]:
        """Wait for something to say; the revision it ends in, and the messages that say it."""
        await self._wake.wait()
        self._wake.clear()
        before, revision = self.acknowledged, self._revision
        if self._sync is not None:
            state, self._sync = self._sync, None
            revision = self._synced_at
            if self._upsert or self._remove:
                self._wake.set()  # what has changed since is not in the state
            messages = []
            for message in _sync_messages(revision, state):
                messages.append(message)
                await asyncio.sleep(0)  # there may be a hundred of them
            return revision, messages
        upsert, remove = list(self._upsert.values()), list(self._remove)
        self._upsert, self._remove = {}, {}
        return revision, list(_update_messages(before, revision, upsert, remove))

    async def wait_for_ack(self, revision: int, timeout: float) -> bool:
        """Whether the gateway acknowledges the revision within ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.acknowledged < revision:
                    self._acked.clear()
                    await self._acked.wait()
        except TimeoutError:
            return False
        return True


class Hub:
    """Joins those who change the store with the one gateway that enforces it."""

    def __init__(self, metrics: Metrics) -> None:
        self.revision = now_ms()
        self.stream: Stream | None = None
        self._metrics = metrics
        self._waiting: list[tuple[int, int, asyncio.Future[bool]]] = []
        self._tie = itertools.count()

    def publish(self, upsert: Iterable[PeerObject] = (), remove: Iterable[str] = ()) -> int:
        """Tell the gateway of a change that is committed; the revision to wait for.

        To be called in the order of the commits (``Transaction.after_commit``).
        """
        upsert, remove = list(upsert), list(remove)
        if not upsert and not remove:
            return self.revision
        self.revision += 1
        if self.stream is not None:
            self.stream.add(self.revision, upsert, remove)
        return self.revision

    async def wait(self, revision: int, timeout: float) -> bool:
        """Whether the gateway has acknowledged the revision within ``timeout`` seconds.

        A gateway that loses its connection meanwhile and comes back in time counts: its full
        synchronisation holds the change.
        """
        if self.stream is not None and self.stream.acknowledged >= revision:
            return True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        heapq.heappush(self._waiting, (revision, next(self._tie), future))
        patience = loop.call_later(timeout, _settle, future, False)
        with self._metrics.ack_seconds.time():
            try:
                return await future
            finally:
                patience.cancel()

    def acknowledge(self, stream: Stream, revision: int) -> None:
        """The gateway has applied everything up to this revision."""
        if stream is not self.stream or revision > self.revision:
            return
        stream.synced = True
        stream.acknowledge(revision)
        self._resolve(revision, True)
        self._metrics.gateway_connected.set(1)

    def refuse(self, stream: Stream, revision: int) -> None:
        """The gateway could not apply this revision: whoever waits for it is told at once."""
        if stream is self.stream:
            self._resolve(revision, False)

    def attach(self, stream: Stream) -> None:
        """Make this the gateway's connection; an older one is to close.

        To be called in the order of the commits, as :meth:`publish` is: the stream's state has all
        that was published before, and nothing that comes after.
        """
        if self.stream is not None:
            self.stream.closed.set()
        self.stream = stream
        stream.begin(self.revision)

    def detach(self, stream: Stream) -> None:
        """The connection is gone."""
        stream.closed.set()
        if self.stream is stream:
            self.stream = None
            self._metrics.gateway_connected.set(0)

    def give_up(self) -> None:
        """Tell all who wait that it will not happen: the control plane stops."""
        self._resolve(self.revision, False)

    def _resolve(self, revision: int, result: bool) -> None:
        while self._waiting and self._waiting[0][0] <= revision:
            _, _, future = heapq.heappop(self._waiting)
            _settle(future, result)


def _settle(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)


def _chunks(peers: Iterable[PeerObject]) -> Iterator[list[str]]:
    now = now_ms()
    chunk: list[str] = []
    size = 0
    for peer in peers:
        rendered = peer.render(now)
        if chunk and (len(chunk) == PEERS_PER_MESSAGE or size + len(rendered) > BYTES_PER_MESSAGE):
            yield chunk
            chunk, size = [], 0
        chunk.append(rendered)
        size += len(rendered)
    yield chunk


def _sync_messages(revision: int, state: Sequence[PeerObject]) -> Iterator[str]:
    now = now_ms()
    alive = [p for p in state if p.expires_at is None or p.expires_at > now]
    chunks = _chunks(alive)
    chunk: list[str] | None = next(chunks)
    while chunk is not None:
        following = next(chunks, None)
        yield (
            f'{{"type":"sync","revision":{revision},"upsert":[{",".join(chunk)}],'
            f'"remove":[],"last":{"true" if following is None else "false"}}}'
        )
        chunk = following


def _update_messages(
    before: int, revision: int, upsert: Sequence[PeerObject], remove: Sequence[str]
) -> Iterator[str]:
    """A change as messages; only the last carries the revision that somebody waits for."""
    now = now_ms()
    gone = [p.id for p in upsert if p.expires_at is not None and p.expires_at <= now]
    past = set(gone)
    chunks = list(_chunks(p for p in upsert if p.id not in past))
    for number, chunk in enumerate(chunks, start=1):
        last = number == len(chunks)
        removed = json.dumps([*remove, *gone] if last else [], separators=(",", ":"))
        yield (
            f'{{"type":"update","revision":{revision if last else before},'
            f'"upsert":[{",".join(chunk)}],"remove":{removed}}}'
        )
