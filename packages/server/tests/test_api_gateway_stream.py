"""The gateway's stream: full state first, changes in order, reports taken, nobody else let in."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect


@pytest.mark.parametrize("bearer", [None, "lt-g" + "A" * 43, "workspace"])
def test_only_gateways_get_the_stream(plane: Any, bearer: str | None) -> None:
    token = plane.workspace("ws") if bearer == "workspace" else bearer
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = plane.url.replace("http", "ws", 1) + "/api/v1/gateway/stream"
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(url, additional_headers=headers),
    ):
        pass
    assert refused.value.response.status_code == (403 if bearer == "workspace" else 401)
    assert b'"code"' in refused.value.response.body


def test_connecting_gateway_gets_everything_in_chunks(
    plane: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lattice_server.hub.PEERS_PER_MESSAGE", 3)
    token = plane.workspace("ws")
    plane.service("ws", "tools")
    ids = {plane.enrolled(token)["peerId"] for _ in range(8)}
    service = plane.call("POST", "/api/v1/services/tools/connect", plane.admin).json()["peerId"]
    gateway.close()
    again = plane.gateway()
    assert set(again.peers) == ids | {service}
    assert [message["last"] for message in again.messages] == [False, False, True]
    assert len({message["revision"] for message in again.messages}) == 1
    assert {len(again.peers[peer]["grants"]) for peer in ids} == {1}
    assert again.peers[service]["grants"] == []


def test_large_change_is_acknowledged_as_a_whole(
    plane: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lattice_server.hub.PEERS_PER_MESSAGE", 2)
    token = plane.workspace("ws")
    ids = [plane.enrolled(token)["peerId"] for _ in range(5)]
    before = len(gateway.messages)
    plane.service("ws", "tools")
    plane.enrolled(token)
    assert {len(gateway.peers[peer]["grants"]) for peer in ids} == {1}
    revisions = [message["revision"] for message in gateway.messages[before:]]
    assert revisions == sorted(revisions)


def test_life_left_is_counted_when_it_is_sent(plane: Any, gateway: Any, wait: Any) -> None:
    one = plane.enrolled(plane.workspace("ws"), ttl="30s")
    first = gateway.peers[one["peerId"]]["expiresIn"]
    gateway.close()
    again = plane.gateway()
    assert 20 < again.peers[one["peerId"]]["expiresIn"] < first


def test_expired_peer_is_not_synchronised(plane: Any, gateway: Any, wait: Any) -> None:
    token = plane.workspace("ws")
    one = plane.enrolled(token, ttl="1s")
    wait("the deadline", lambda: plane.peers() == [])
    gateway.close()
    assert one["peerId"] not in plane.gateway().peers


def test_report_of_an_expiry_ends_the_peer(plane: Any, gateway: Any, wait: Any) -> None:
    token = plane.workspace("ws")
    short, long = plane.enrolled(token, ttl="1s"), plane.enrolled(token)
    wait("the deadline", lambda: len(plane.peers()) == 1)
    assert plane.events("expired") == []  # nobody has noticed yet
    report = [{"id": short["peerId"], "lateBy": 0.003}, {"id": long["peerId"], "lateBy": 0}]
    gateway.send({"type": "expired", "peers": report})
    [event] = wait("the event", lambda: plane.events("expired"))
    assert event["peerId"] == short["peerId"]
    assert [peer["peerId"] for peer in plane.peers()] == [long["peerId"]]
    assert long["peerId"] in gateway.peers


def test_denied_flows_become_bounded_events(
    plane: Any, gateway: Any, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lattice_server.denials.FLOWS_PER_PEER", 10)
    one = plane.enrolled(plane.workspace("ws"))
    flow = {
        "id": one["peerId"],
        "source": one["overlayIP"].removesuffix("/32"),
        "destination": "10.96.9.9",
        "protocol": "tcp",
        "port": 443,
        "packets": 3,
    }
    gateway.send({"type": "denied", "flows": [flow]})
    [event] = wait("the event", lambda: plane.events("denied"))
    assert (event["peerId"], event["workspaceId"]) == (one["peerId"], "ws")
    assert (event["data"]["destination"], event["data"]["port"], event["data"]["packets"]) == (
        *("10.96.9.9", 443),
        3,
    )
    assert event["data"]["policyPreset"] == "sandboxed"
    for _ in range(20):
        gateway.send({"type": "denied", "flows": [{**flow, "port": p} for p in range(1, 500)]})
    stranger = {**flow, "id": None, "source": "10.96.77.77"}
    gateway.send({"type": "denied", "flows": [stranger]})
    wait(
        "the last report",
        lambda: any(e["data"]["source"] == "10.96.77.77" for e in plane.events("denied")),
    )
    events = plane.events("denied")
    assert len(events) <= 11
    text = plane.http.get("/metrics").text
    assert f"lattice_denied_packets_total {float(3 + 20 * 499 * 3 + 3)}" in text


def test_rest_of_a_flood_is_one_event(make_control_plane: Any, tmp_path: Any) -> None:
    directory = tmp_path / "data"
    with make_control_plane(data_dir=directory) as plane:
        gateway = plane.gateway()
        one = plane.enrolled(plane.workspace("ws"))
        flows = [
            {
                "id": one["peerId"],
                "source": "10.96.3.3",
                "destination": "10.96.9.9",
                "protocol": "tcp",
                "port": port,
                "packets": 1,
            }
            for port in range(1, 1001)
        ]
        gateway.send({"type": "denied", "flows": flows})
        gateway.send({"type": "ack", "revision": 0})
        plane.enrolled(plane.workspace("ws"))  # both messages were read before this one's ack
    with make_control_plane(data_dir=directory) as plane:
        denied = plane.events("denied")
        assert len(denied) == 51
        assert denied[-1]["data"]["furtherFlows"] == 950


def test_gateways_new_key_and_endpoint_are_in_later_answers(plane: Any, gateway: Any) -> None:
    token = plane.workspace("ws")
    one = plane.enrolled(token)
    gateway.close()
    other = plane.gateway(endpoint="gw.example:4500")
    renewed = plane.call(
        "POST", f"/api/v1/peers/{one['peerId']}/renew", one["enrollmentToken"]
    ).json()
    assert "Endpoint = gw.example:4500" in renewed["wireguardConfig"]
    assert other.hello["publicKey"] in renewed["wireguardConfig"]


def test_same_gateway_again_replaces_its_old_connection(
    plane: Any, gateway: Any, wait: Any
) -> None:
    again = plane.gateway()
    wait("the old connection to close", lambda: gateway.closed)
    assert gateway.closed[0] == 4409
    assert plane.enroll(plane.workspace("ws")).status_code == 201
    assert again.peers


@pytest.mark.parametrize("first", ["gateway", "deletion"])
def test_deletion_in_the_same_commit_as_a_gateway_reaches_it(
    plane: Any, gateway: Any, wait: Any, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setattr("lattice_server.store.groups.LONGEST_SECONDS", 60)
    one, other = (plane.enrolled(plane.workspace(name)) for name in ("one", "other"))
    token, kind = plane.token(kind="gateway"), type(gateway)
    held = Held(plane)
    with ThreadPoolExecutor(2) as pool, held:
        steps = {
            "gateway": lambda: kind(plane.url, token),
            "deletion": lambda: plane.call(
                "DELETE", f"/api/v1/peers/{one['peerId']}", one["enrollmentToken"]
            ),
        }
        done = {}
        for number, name in enumerate(sorted(steps, key=lambda name: name != first), start=1):
            done[name] = pool.submit(steps[name])
            wait(f"the {name} in line", lambda n=number: held.in_line() == n)
        held.go_on()
        again = done["gateway"].result()
        try:
            assert done["deletion"].result().status_code == 204
            assert set(again.peers) == {other["peerId"]}
        finally:
            again.close()


def test_gateway_whose_connection_is_not_written_is_not_the_one(
    plane: Any, gateway: Any, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not be replaced by one of another name, and all who change something wait for it."""
    gateway.close()
    wait("the end of the first", lambda: plane.control.hub.stream is None)
    monkeypatch.setattr("lattice_server.store.groups.LONGEST_SECONDS", 60)
    token = plane.token(kind="gateway")
    with Held(plane, breaks=True) as held:
        broken = type(gateway)(plane.url, token)
        wait("the gateway in line", lambda: held.in_line() == 1)
        held.go_on()
        wait("its end", lambda: broken.closed)
        broken.close()
    assert plane.control.hub.stream is None
    assert plane.gateway(gateway="second").messages


class Held:
    """Holds the store's one writer, so that those who come stand in line and share a commit.

    Args:
        plane: whose store.
        breaks: whether that commit fails.
    """

    def __init__(self, plane: Any, *, breaks: bool = False) -> None:
        self.plane, self.breaks = plane, breaks
        self.writer = plane.control.database._sqlite_in_place().writer

    def __enter__(self) -> Held:
        self.held, self.free = threading.Event(), asyncio.Event()
        self.work = asyncio.run_coroutine_threadsafe(self._hold(), self.plane.loop)
        assert self.held.wait(20)
        return self

    async def _hold(self) -> None:
        if self.breaks:
            self.writer._connection.say("PRAGMA foreign_keys = ON")
        async with self.plane.control.database.write() as tx:
            if self.breaks:
                for line in (
                    "CREATE TABLE one (n INTEGER PRIMARY KEY)",
                    "CREATE TABLE two (n REFERENCES one DEFERRABLE INITIALLY DEFERRED)",
                    "INSERT INTO two VALUES (7)",
                ):
                    await tx.connection.execute(text(line))
            self.held.set()
            await self.free.wait()

    def in_line(self) -> int:
        """How many wait for their turn."""
        return int(self.writer._waiting)

    def go_on(self) -> None:
        """Let them write."""
        self.plane.loop.call_soon_threadsafe(self.free.set)

    def __exit__(self, *_: object) -> None:
        self.go_on()
        if self.breaks:
            with pytest.raises(IntegrityError):
                self.work.result(20)
        else:
            self.work.result(20)


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({"overlay": "10.97.0.0/16"}, 4400),
        ({"address": "10.96.0.2"}, 4400),
        ({"publicKey": "x"}, 4400),
        ({"endpoint": "nowhere"}, 4400),
        ({"type": "ack"}, 4400),
    ],
)
def test_gateway_that_does_not_fit_is_told_why(
    plane: Any, wait: Any, hello: dict[str, Any], code: int
) -> None:
    from contextlib import ExitStack
    from typing import cast

    kind = cast(Any, type(plane.gateway()))
    with ExitStack() as stack:
        wrong = kind(plane.url, plane.token(kind="gateway"), **hello)
        stack.callback(wrong.close)
        wait("the refusal", lambda: wrong.closed)
        assert wrong.closed[0] == code
        assert wrong.closed[1]


def test_second_gateway_is_kept_out(plane: Any, gateway: Any, wait: Any) -> None:
    other = type(gateway)(plane.url, plane.token(kind="gateway"), gateway="second")
    wait("the refusal", lambda: other.closed)
    assert other.closed[0] == 1013
    assert plane.enroll(plane.workspace("ws")).status_code == 201


def test_nonsense_from_the_gateway_closes_its_stream(plane: Any, gateway: Any, wait: Any) -> None:
    gateway.send({"type": "surprise"})
    wait("the close", lambda: gateway.closed)
    assert gateway.closed[0] == 4400
    assert plane.gateway()
