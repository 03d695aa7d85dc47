"""The second dialect of published servers, spoken by a server on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lattice_sdk import LatticeAgent
from lattice_sdk.errors import ConfigurationError, NotPermitted
from support.waiting import wait_for


class DialectServer(ThreadingHTTPServer):
    """Wraps answers, always HTTP 200; names identities; knows no renewal."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), DialectHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.live: dict[str, dict[str, Any]] = {}
        self.enrolled: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.tells_expiry = True


class DialectHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DialectServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        missing = [name for name in ("workspaceId", "agentType", "agentName") if not body.get(name)]
        if self.path != "/api/v1/agent-enroll":
            return self.answer(404, "no such route")
        if missing:
            return self.answer(400, f"missing {missing}")
        if self.headers["Authorization"] != "Bearer lt-good":
            return self.answer(403, "token is not allowed to enroll agents")
        self.server.enrolled.append(body)
        self.server.live[body["agentName"]] = body
        data = {"peerName": body["agentName"], "ttlSeconds": body.get("ttlSeconds", 3600)}
        if self.server.tells_expiry:
            at = time.gmtime(time.time() + data["ttlSeconds"])
            data["expiresAt"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", at)
        return self.answer(0, "ok", data)

    def do_DELETE(self) -> None:
        path, _, query = self.path.partition("?")
        name = path.rpartition("/")[2]
        if query != "workspaceId=ws" or name not in self.server.live:
            return self.answer(404, "no such peer")
        del self.server.live[name]
        self.server.deleted.append(name)
        return self.answer(200, "deleted")

    def answer(self, code: int, msg: str, data: Any = None) -> None:
        body = json.dumps({"code": code, "msg": msg, "data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[DialectServer]:
    with DialectServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def agent(server: DialectServer, **settings: Any) -> LatticeAgent:
    return LatticeAgent(
        **{
            "server": server.url,
            "token": "lt-good",
            "agent_name": "worker",
            "workspace_id": "ws",
            "backend": "none",
            **settings,
        }
    )


@pytest.mark.parametrize("tells_expiry", [True, False])
def test_identity_is_enrolled_and_deleted(server: DialectServer, tells_expiry: bool) -> None:
    server.tells_expiry = tells_expiry
    with agent(server, ttl="10m") as living:
        assert living.peer_id in server.live
        assert 590 < living.remaining <= 601
        assert server.enrolled[0]["ttlSeconds"] == 600
        assert server.enrolled[0]["agentType"] == "worker"
    assert server.live == {}


def test_without_renewal_it_enrolls_anew_under_a_new_name(server: DialectServer) -> None:
    server.tells_expiry = False
    with agent(server, ttl="12s") as living:
        first = living.peer_id
        wait_for("its successor", lambda: first in server.deleted)
        wait_for("it alone to live", lambda: list(server.live) == [living.peer_id])
        assert living.peer_id != first
        assert living.state in ("active", "renewing")
    assert server.live == {}
    assert len({body["agentName"] for body in server.enrolled}) == len(server.enrolled)


def test_refusal_has_its_reason_from_msg(server: DialectServer) -> None:
    with pytest.raises(NotPermitted, match="not allowed to enroll agents"):
        agent(server, token="lt-other").open()
    assert server.live == {}


def test_workspace_that_is_missing_is_said_to_be(server: DialectServer) -> None:
    with pytest.raises(ConfigurationError, match="workspace"):
        agent(server, workspace_id=None).open()
