"""What the gateway is told, batch by batch, ends in what was published."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_server.hub import GatewayInfo, Hub, PeerObject, Stream
from lattice_server.metrics import Metrics
from lattice_server.policy import Grant

FOREVER = 2**52
INFO = GatewayInfo("default", "key", "127.0.0.1:1", "0")


def peer(number: int, key: str, expires_at: int | None = FOREVER) -> PeerObject:
    grants = (Grant("10.96.0.7", "tcp", 443),)
    return PeerObject(f"peer-{number}", key, f"10.96.0.{number}", expires_at, grants)


async def told(stream: Stream, known: dict[str, str]) -> int:
    """Apply one batch as a gateway would; the revision it ends in."""
    revision, messages = await stream.batch()
    for text in messages:
        message: dict[str, Any] = json.loads(text)
        if message["type"] == "sync":
            known.clear()
        known.update({item["id"]: item["publicKey"] for item in message["upsert"]})
        assert not {item["id"] for item in message["upsert"]} & set(message["remove"])
        for gone in message["remove"]:
            known.pop(gone, None)
        assert message["revision"] <= revision
    assert json.loads(messages[-1])["revision"] == revision
    return revision


steps = st.lists(
    st.tuples(st.sampled_from(["upsert", "remove", "read"]), st.integers(0, 4), st.integers(0, 99)),
    max_size=40,
)


@given(steps)
def test_batches_add_up_to_what_was_published(changes: list[tuple[str, int, int]]) -> None:
    import asyncio

    async def run() -> None:
        hub, known, model = Hub(Metrics()), {}, {}
        stream = Stream(INFO, [])
        hub.attach(stream)

        async def settle() -> None:
            while (revision := await told(stream, known)) < hub.revision:
                hub.acknowledge(stream, revision)
            hub.acknowledge(stream, revision)
            assert known == model

        pending = True  # what comes before the first batch is not lost either
        for what, number, version in changes:
            if what == "upsert":
                model[f"peer-{number}"] = str(version)
                hub.publish([peer(number, str(version))])
                pending = True
            elif what == "remove":
                model.pop(f"peer-{number}", None)
                hub.publish(remove=[f"peer-{number}"])
                pending = True
            elif pending:
                await settle()
                pending = False
        if pending:
            await settle()
        assert known == model

    asyncio.run(run())


@pytest.mark.anyio
async def test_state_is_labelled_with_its_own_revision() -> None:
    """Or a gateway acknowledges a removal that it has not been told of."""
    import asyncio

    hub, known = Hub(Metrics()), dict[str, str]()
    stream = Stream(INFO, [peer(1, "a"), peer(2, "b")])
    hub.publish([peer(2, "b")])  # committed before, and so in the state
    before = hub.revision
    hub.attach(stream)
    removed = hub.publish(remove=["peer-1"])
    assert await told(stream, known) == before
    assert known == {"peer-1": "a", "peer-2": "b"}
    hub.acknowledge(stream, before)
    waiting = asyncio.create_task(hub.wait(removed, 20))
    async with asyncio.timeout(20):
        assert await told(stream, known) == removed
    assert known == {"peer-2": "b"}
    hub.acknowledge(stream, removed)
    assert await waiting


@pytest.mark.anyio
async def test_expired_peer_in_an_update_is_a_removal() -> None:
    hub = Hub(Metrics())
    stream = Stream(INFO, [peer(1, "a"), peer(2, "b", expires_at=1)])
    hub.attach(stream)
    known: dict[str, str] = {}
    await told(stream, known)
    assert known == {"peer-1": "a"}
    hub.publish([peer(1, "a", expires_at=1)])
    await told(stream, known)
    assert known == {}


@pytest.mark.anyio
async def test_waiting_ends_with_the_acknowledgement_of_that_or_a_later_revision() -> None:
    import asyncio

    hub = Hub(Metrics())
    stream = Stream(INFO, [])
    hub.attach(stream)
    revisions = [hub.publish([peer(n, "a")]) for n in range(3)]
    waits = [asyncio.create_task(hub.wait(revision, 20)) for revision in revisions]
    await asyncio.sleep(0)
    hub.acknowledge(stream, revisions[1])
    assert await waits[0]
    assert await waits[1]
    assert not waits[2].done()
    hub.acknowledge(stream, revisions[2] + 100)  # nobody can have applied what was never said
    assert not waits[2].done()
    hub.refuse(stream, revisions[2])
    assert not await waits[2]
    assert not await hub.wait(revisions[2], 0.01)


@pytest.mark.anyio
async def test_old_connections_acknowledgements_do_not_count() -> None:
    hub = Hub(Metrics())
    old, new = Stream(INFO, []), Stream(INFO, [])
    hub.attach(old)
    hub.attach(new)
    revision = hub.publish([peer(1, "a")])
    hub.acknowledge(old, revision)
    assert not await hub.wait(revision, 0.01)
    hub.detach(old)
    assert hub.stream is new
