"""What is on record: events that nobody rewrites, denials added up; and quarantine."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice_server.api.models import Denial
from lattice_server.denials import Flow
from lattice_server.quarantine import Window
from lattice_server.store.events import EVENT_TYPES


def flow(peer: dict[str, Any], port: int = 22, packets: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "id": peer["peerId"],
        "source": peer["overlayIP"].removesuffix("/32"),
        "destination": "10.96.9.9",
        "protocol": "tcp",
        "port": port,
        "packets": packets,
        **more,
    }


def sums(plane: Any, query: str = "") -> list[dict[str, Any]]:
    return list(plane.manage("GET", f"/api/v1/denials{query}")["items"])


def test_denials_say_who_to_where_how_often_first_and_last(
    plane: Any, gateway: Any, wait: Any
) -> None:
    one = plane.enrolled(plane.workspace("ws"), "one")
    two = plane.enrolled(plane.workspace("ws-other"), "two")
    gateway.send({"type": "denied", "flows": [flow(one, packets=3), flow(two, 80)]})
    wait("the sums", lambda: len(sums(plane)) == 2)
    first = Denial.model_validate(sums(plane, f"?peerId={one['peerId']}")[0])
    assert (first.name, first.workspace_id, first.packets) == ("one", "ws", 3)
    assert (first.destination, first.protocol, first.port) == ("10.96.9.9", "tcp", 22)
    assert first.source == one["overlayIP"].removesuffix("/32")
    [other] = sums(plane, "?workspaceId=ws-other")
    assert (other["peerId"], other["port"]) == (two["peerId"], 80)
    # More of the same is counted in the same row, also after the agent has ended.
    plane.call("DELETE", f"/api/v1/peers/{one['peerId']}", one["enrollmentToken"])
    gateway.send({"type": "denied", "flows": [flow(one, packets=4)]})
    wait("the report", lambda: "denied_packets_total 8" in plane.http.get("/metrics").text)
    plane.run(plane.control.denials.flush())
    [again] = sums(plane, f"?peerId={one['peerId']}")
    assert again["packets"] == 7
    assert again["firstAt"] == sums(plane)[0]["firstAt"] <= again["lastAt"]


def test_two_who_write_at_a_time_count_once(plane: Any, gateway: Any, wait: Any) -> None:
    agent = plane.enrolled(plane.workspace("ws"))

    async def report_and_write() -> None:
        flows = [Flow(agent["peerId"], agent["overlayIP"], "10.96.0.9", "tcp", 443, 1)]
        plane.control.denials.report(flows)
        await asyncio.gather(*(plane.control.denials.flush() for _ in range(3)))

    plane.run(report_and_write())
    [found] = sums(plane)
    assert found["packets"] == 1
    assert len(plane.events("denied")) == 1


def test_scan_fills_neither_the_log_nor_the_table(
    plane: Any, gateway: Any, wait: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("lattice_server.denials.ROWS_PER_PEER", 20)
    agent = plane.enrolled(plane.workspace("ws"))
    gateway.send({"type": "denied", "flows": [flow(agent, port) for port in range(1, 101)]})
    wait("the report", lambda: "denied_packets_total 100" in plane.http.get("/metrics").text)
    plane.run(plane.control.denials.flush())
    found = sums(plane)
    assert len(found) == 21
    [rest] = [one for one in found if one["destination"] is None]
    assert (rest["packets"], rest["port"]) == (80, None)
    page = plane.manage("GET", "/api/v1/denials?limit=5")
    assert len(page["items"]) == 5
    assert sums(plane, f"?cursor={page['next']}") == found[5:]


def test_observer_reads_evidence_and_does_nothing_else(plane: Any, gateway: Any) -> None:
    observer, workspace = plane.token(kind="observer"), plane.workspace("ws")
    agent = plane.enrolled(workspace)
    for path in ("/api/v1/events", "/api/v1/denials", "/metrics"):
        assert plane.call("GET", path, observer).status_code == 200
        assert plane.call("GET", path, workspace).status_code == 403
        assert plane.call("GET", path, agent["enrollmentToken"]).status_code == 403
    for method, path in (
        ("GET", "/api/v1/peers"),
        ("GET", "/api/v1/tokens"),
        ("POST", "/api/v1/agent-enroll"),
        ("DELETE", f"/api/v1/peers/{agent['peerId']}"),
        ("POST", "/api/v1/workspaces"),
    ):
        body = {"agentName": "x"} if path.endswith("enroll") else {"workspaceId": "x"}
        json_body = body if method == "POST" else None
        assert plane.call(method, path, observer, json=json_body).status_code == 403


def test_metrics_name_workspaces_to_those_who_may_know(plane: Any, gateway: Any) -> None:
    for name in ("ws-a", "ws-b"):
        plane.enrolled(plane.workspace(name))
    everybody = plane.http.get("/metrics").text
    assert "ws-a" not in everybody
    assert 'lattice_peers{preset="sandboxed",workspace=""} 2.0' in everybody
    known = plane.call("GET", "/metrics", plane.token(kind="observer")).text
    assert 'lattice_peers{preset="sandboxed",workspace="ws-a"} 1.0' in known
    assert "ws-a" not in plane.http.get("/metrics").text
    assert plane.call("GET", "/metrics", "lt-onobody").status_code == 401


def test_log_cannot_be_rewritten(plane: Any) -> None:
    plane.workspace("ws")
    with sqlite3.connect(plane.settings.data_dir / "lattice.db") as connection:
        for statement in (
            "UPDATE events SET type = 'expired'",
            "UPDATE events SET data = '{}' WHERE seq = 1",
            "UPDATE events SET seq = seq + 1",
            "INSERT INTO events (seq, at, type, data) VALUES (1, 0, 'expired', '{}') "
            "ON CONFLICT (seq) DO UPDATE SET type = 'expired'",
            "INSERT OR REPLACE INTO events (seq, at, type, data) VALUES (1, 0, 'expired', '{}')",
            "DELETE FROM events",
            "DELETE FROM events WHERE seq = 1",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def test_retention_deletes_what_it_says_and_nothing_newer(plane: Any) -> None:
    from sqlalchemy import delete
    from sqlalchemy.exc import DBAPIError

    from lattice_server.store import schema
    from lattice_server.store.events import permit_forgetting

    for number in range(3):
        plane.workspace(f"ws-{number}")
    before = [event["seq"] for event in plane.events()]

    async def forget(newest: int) -> None:
        async with (
            plane.control.database.write() as tx,
            permit_forgetting(tx, before[1]),
        ):
            await tx.connection.execute(delete(schema.events).where(schema.events.c.seq <= newest))

    with pytest.raises(DBAPIError, match="append-only"):
        plane.run(forget(before[2]))
    assert [event["seq"] for event in plane.events()] == before
    plane.run(forget(before[1]))
    assert [event["seq"] for event in plane.events()] == before[2:]
    with (
        sqlite3.connect(plane.settings.data_dir / "lattice.db") as connection,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        connection.execute("DELETE FROM events")


class Follower:
    """Reads a stream in a thread."""

    def __init__(self, plane: Any, token: str, query: str = "", **headers: str) -> None:
        self.lines: list[str] = []
        self.kind = ""
        self.over = threading.Event()
        self._plane, self._query = plane, query
        self._headers = {"Authorization": f"Bearer {token}", **headers}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        path = f"{self._plane.url}/api/v1/events{self._query}"
        # A stream that is still followed when the test ends breaks off.
        with (
            suppress(httpx.HTTPError),
            httpx.stream("GET", path, headers=self._headers, timeout=60) as answer,
        ):
            self.kind = answer.headers["content-type"]
            for line in answer.iter_lines():
                self.lines.append(line)
            self.over.set()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[6:]) for line in self.lines if line.startswith("data: ")]


def test_server_sent_events_go_on_where_they_were_left(plane: Any, gateway: Any, wait: Any) -> None:
    token, observer = plane.workspace("ws"), plane.token(kind="observer")
    accept = {"Accept": "text/event-stream"}
    follower = Follower(plane, observer, **accept)
    wait("what was there", lambda: len(follower.events()) >= 3)
    plane.enrolled(token)
    wait("the enrollment", lambda: follower.events()[-1]["type"] == "enrolled")
    assert follower.kind.startswith("text/event-stream")
    ids = [line.removeprefix("id: ") for line in follower.lines if line.startswith("id: ")]
    kinds = [line.removeprefix("event: ") for line in follower.lines if line.startswith("event: ")]
    assert ids == [str(event["seq"]) for event in follower.events()]
    assert kinds == [event["type"] for event in follower.events()]
    later = Follower(plane, observer, **{"Last-Event-ID": ids[-2], **accept})
    wait("the rest", lambda: later.events())
    assert [event["seq"] for event in later.events()] == [int(ids[-1])]
    bad = plane.call("GET", "/api/v1/events", observer, headers={"Last-Event-ID": "x", **accept})
    assert bad.status_code == 422


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_stream_ends_with_its_token(
    plane: Any, gateway: Any, wait: Any, monkeypatch: Any, accept: str
) -> None:
    monkeypatch.setattr("lattice_server.api.events.CHECK_SECONDS", 0)
    made = plane.manage("POST", "/api/v1/tokens", {"kind": "observer"})
    follower = Follower(plane, made["token"], "?follow=true", Accept=accept)
    wait("the beginning", lambda: follower.lines)
    plane.manage("DELETE", f"/api/v1/tokens/{made['id']}")
    assert follower.over.wait(60)
    plane.workspace("made-too-late")
    assert "made-too-late" not in "".join(follower.lines)


def test_quiet_stream_says_that_it_is_there(plane: Any, wait: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("lattice_server.api.events.QUIET_SECONDS", 0.05)
    lines = Follower(plane, plane.admin, "?follow=true")
    events = Follower(plane, plane.admin, Accept="text/event-stream")
    wait("two signs", lambda: lines.lines.count("") > 1 and events.lines.count(":") > 1)


@contextmanager
def watched(make_control_plane: Any, **settings: Any) -> Iterator[tuple[Any, Any, str]]:
    with make_control_plane(denial_limit=10, denial_window=30, **settings) as plane:
        yield plane, plane.gateway(), plane.workspace("ws")


def test_agent_that_is_refused_too_often_is_ended(make_control_plane: Any, wait: Any) -> None:
    with watched(make_control_plane) as (plane, gateway, token):
        agent, other = plane.enrolled(token, "scanner"), plane.enrolled(token, "other")
        gateway.send({"type": "denied", "flows": [flow(agent, p) for p in range(10)]})
        gateway.send({"type": "denied", "flows": [flow(other, packets=10)]})
        wait("the report", lambda: "denied_packets_total 20" in plane.http.get("/metrics").text)
        assert plane.events("quarantined") == []
        gateway.send({"type": "denied", "flows": [flow(agent, 99)]})
        wait("the end", lambda: agent["peerId"] not in gateway.peers)
        [event] = plane.events("quarantined")
        assert (event["peerId"], event["name"]) == (agent["peerId"], "scanner")
        assert event["data"]["packets"] == 11
        [revoked] = plane.events("revoked")
        assert (revoked["data"]["by"], revoked["data"]["reason"]) == ("server", "denials")
        path = f"/api/v1/peers/{agent['peerId']}/renew"
        assert plane.call("POST", path, agent["enrollmentToken"]).status_code == 404
        assert set(gateway.peers) == {other["peerId"]}
        assert "lattice_quarantined_total 1.0" in plane.http.get("/metrics").text
        # What is still reported of it ends nobody a second time.
        gateway.send({"type": "denied", "flows": [flow(agent, packets=99)]})
        wait("the report", lambda: "denied_packets_total 120" in plane.http.get("/metrics").text)
        assert len(plane.events("quarantined")) == 1


def test_sub_agents_do_not_multiply_what_may_be_tried(make_control_plane: Any, wait: Any) -> None:
    with watched(make_control_plane) as (plane, gateway, token):
        parent = plane.enrolled(token, "parent")
        path = f"/api/v1/agents/{parent['peerId']}/delegate"
        children = []
        for number in range(3):
            body = {"subAgentName": f"c{number}"}
            answer = plane.call("POST", path, parent["enrollmentToken"], json=body).json()
            children.append(plane.enrolled(answer["enrollmentToken"], f"c{number}"))
        gateway.send({"type": "denied", "flows": [flow(c, packets=4) for c in children]})
        wait("the end of all", lambda: gateway.peers == {})
        [event] = plane.events("quarantined")
        assert event["peerId"] == parent["peerId"]


def test_connector_and_strangers_are_not_quarantined(make_control_plane: Any, wait: Any) -> None:
    with watched(make_control_plane) as (plane, gateway, workspace):
        plane.service("ws", "tools")
        token = plane.token(kind="service", workspaceId="ws", service="tools")
        one = plane.call("POST", "/api/v1/services/tools/connect", token).json()
        gateway.send({"type": "denied", "flows": [flow(one, packets=50), flow(one, id="peer-x")]})
        # Reports are counted in turn: what comes after them is a sign that they were.
        agent = plane.enrolled(workspace)
        gateway.send({"type": "denied", "flows": [flow(agent, packets=11)]})
        wait("the end of the agent", lambda: agent["peerId"] not in gateway.peers)
        assert one["peerId"] in gateway.peers
        assert [e["peerId"] for e in plane.events("quarantined")] == [agent["peerId"]]


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 9)), max_size=30), st.floats(0.1, 10))
def test_window_counts_what_is_within_it(steps: list[tuple[float, int]], seconds: float) -> None:
    window, now = Window(seconds), 0.0
    seen: list[tuple[float, int]] = []
    for pause, count in steps:
        now += pause
        seen.append((now, count))
        assert window.add(now, count) == sum(n for at, n in seen if at > now - seconds)
        assert not window.quiet(now)
    assert window.quiet(now + seconds * 1.001)


def test_every_event_type_is_on_the_api_page() -> None:
    from pathlib import Path

    page = Path(__file__).parents[3] / "docs" / "api.md"
    text = page.read_text().partition("### `GET /api/v1/events`")[2]
    assert [kind for kind in EVENT_TYPES if f"`{kind}`" not in text] == []


def test_old_denials_and_delegations_are_forgotten(
    make_control_plane: Callable[..., Any], wait: Any
) -> None:
    with make_control_plane(retention=0, reconcile_interval=0.1) as plane:
        gateway = plane.gateway()
        agent = plane.enrolled(plane.workspace("ws"))
        path = f"/api/v1/agents/{agent['peerId']}/delegate"
        body = {"subAgentName": "x", "ttl": "1s"}
        plane.call("POST", path, agent["enrollmentToken"], json=body)
        gateway.send({"type": "denied", "flows": [flow(agent)]})
        wait("the sum", lambda: sums(plane))
        plane.control.settings.event_retention = timedelta(seconds=1)

        def forgotten() -> bool:
            listed = plane.manage("GET", "/api/v1/tokens")["items"]
            return not sums(plane) and not [t for t in listed if t["kind"] == "delegation"]

        wait("the reconciler", forgotten)
