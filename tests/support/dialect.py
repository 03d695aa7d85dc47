"""The second dialect of published servers, spoken by a server on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from lattice_server.fabric import Fabric

TOKEN = "lt-good"
# What some of these servers call a field of the answer.
OTHER_NAMES = {"peerName": "peerId", "overlayIP": "overlayIp", "enrollmentToken": "token"}


class DialectServer(ThreadingHTTPServer):
    """Wraps answers, always HTTP 200; names identities; knows no renewal. A context manager.

    Attributes:
        live: what was asked for, by the name of the identity.
        tells_expiry: whether answers have ``expiresAt``.
        told: further fields of answers.
        names: what fields of answers are called instead.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), DialectHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.live: dict[str, dict[str, Any]] = {}
        self.enrolled: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.tells_expiry = True
        self.told: dict[str, Any] = {}
        self.names: Mapping[str, str] = {}
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> DialectServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def grant(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to an enrollment."""
        data = {"peerName": body["agentName"], "ttlSeconds": body.get("ttlSeconds", 3600)}
        if self.tells_expiry:
            at = time.gmtime(time.time() + data["ttlSeconds"])
            data["expiresAt"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", at)
        return {**data, **self.told}

    def end(self, name: str) -> None:
        """What else a deletion does."""


class DialectFront(DialectServer):
    """Before a real fabric, so that identities have a tunnel."""

    def __init__(self, fabric: Fabric) -> None:
        super().__init__()
        self._fabric = fabric
        self._peers: dict[str, str] = {}

    def grant(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Enroll there, in the first dialect."""
        names = ("agentName", "agentType", "policyPreset", "publicKey")
        asked = {name: body[name] for name in names if name in body}
        peer = httpx.post(
            f"{self._fabric.url}/api/v1/agent-enroll",
            headers={"Authorization": f"Bearer {self._fabric.workspace_token}"},
            json={**asked, "ttl": f"{body['ttlSeconds']}s"},
            timeout=60,
        )
        told = peer.raise_for_status().json()
        self._peers[body["agentName"]] = told["peerId"]
        fields = ("overlayIP", "wireguardConfig", "expiresAt", "services", "gatewayIP")
        return {**super().grant(body), **{field: told[field] for field in fields}}

    def end(self, name: str) -> None:
        """Delete it there."""
        self._fabric.request("DELETE", f"/api/v1/peers/{self._peers.pop(name)}")


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
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(403, "token is not allowed to enroll agents")
        self.server.enrolled.append(body)
        self.server.live[body["agentName"]] = body
        data = self.server.grant(body)
        names = self.server.names
        return self.answer(0, "ok", {names.get(name, name): data[name] for name in data})

    def do_DELETE(self) -> None:
        path, _, query = self.path.partition("?")
        name = path.rpartition("/")[2]
        if query != "workspaceId=ws" or name not in self.server.live:
            return self.answer(404, "no such peer")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(403, "token is not allowed to delete this peer")
        self.server.end(name)
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
