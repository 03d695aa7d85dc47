"""A real control plane over real HTTP, and a gateway that speaks the protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from lattice_server.app import create_app
from lattice_server.control import ControlPlane
from lattice_server.run import web_config
from lattice_server.settings import ServerSettings
from support.waiting import wait_for


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def new_key() -> str:
    """A public key; the control plane only needs its form."""
    return base64.b64encode(os.urandom(32)).decode()


class ProtocolGateway:
    """The gateway's side of the stream: applies what it is told and acknowledges."""

    def __init__(self, url: str, token: str, **hello: Any) -> None:
        self.hello = {
            "type": "hello",
            "gateway": "default",
            "publicKey": new_key(),
            "endpoint": "127.0.0.1:51820",
            "address": "10.96.0.1",
            "overlay": "10.96.0.0/16",
            "version": "0.1.0",
            **hello,
        }
        self.peers: dict[str, dict[str, Any]] = {}
        self.messages: list[dict[str, Any]] = []
        self.silent = False
        self.refuse: str | None = None
        self.closed: tuple[int, str] | None = None
        self._partial: dict[str, dict[str, Any]] = {}
        self._stack = ExitStack()
        self.socket: ClientConnection = self._stack.enter_context(
            connect(
                url.replace("http", "ws", 1) + "/api/v1/gateway/stream",
                additional_headers={"Authorization": f"Bearer {token}"},
                max_size=None,
            )
        )
        self.send(self.hello)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        self.socket.send(json.dumps(message))

    def _run(self) -> None:
        try:
            for text in self.socket:
                self._apply(json.loads(text))
        except ConnectionClosed:
            pass
        self.closed = (self.socket.close_code or 0, self.socket.close_reason or "")

    def _apply(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if self.refuse is not None:
            self.send({"type": "nack", "revision": message["revision"], "error": self.refuse})
            return
        if message["type"] == "sync":
            self._partial |= {peer["id"]: peer for peer in message["upsert"]}
            if not message["last"]:
                return
            self.peers, self._partial = self._partial, {}
        else:
            for peer in message["upsert"]:
                self.peers[peer["id"]] = peer
            for peer_id in message["remove"]:
                self.peers.pop(peer_id, None)
        if not self.silent:
            self.send({"type": "ack", "revision": message["revision"]})

    def close(self) -> None:
        self._stack.close()
        self._thread.join(10)


class Running:
    """A control plane that serves in a thread, with helpers for what tests do all the time."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.app = create_app(settings)
        self.control: ControlPlane = self.app.state.control
        self.server = uvicorn.Server(web_config(self.app, settings, port=0, lifespan="on"))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._stack = ExitStack()

    def _serve(self) -> None:
        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve()

        # uvicorn ends a failed start with sys.exit
        with suppress(SystemExit):
            asyncio.run(serve())

    def start(self) -> None:
        self._thread.start()
        wait_for("the server", lambda: self.server.started or not self._thread.is_alive())
        assert self.server.started, "the server did not start"
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.admin = (self.settings.data_dir / "admin.token").read_text().strip()
        self.http = self._stack.enter_context(httpx.Client(base_url=self.url, timeout=120))

    def stop(self) -> None:
        self._stack.close()
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something of the control plane's inside, in its own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(self, method: str, path: str, token: str | None = None, **options: Any) -> Any:
        headers = dict(options.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.http.request(method, path, headers=headers, **options)

    def manage(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.call(method, path, self.admin, json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def workspace(self, name: str) -> str:
        self.manage("POST", "/api/v1/workspaces", {"workspaceId": name})
        return self.token(kind="workspace", workspaceId=name)

    def token(self, **body: Any) -> str:
        return str(self.manage("POST", "/api/v1/tokens", body)["token"])

    def gateway(self, **hello: Any) -> ProtocolGateway:
        gateway = ProtocolGateway(self.url, self.token(kind="gateway"), **hello)
        self._stack.callback(gateway.close)
        wait_for("the synchronisation", lambda: self.http.get("/readyz").status_code == 200)
        return gateway

    def enroll(self, token: str, name: str = "agent", **body: Any) -> Any:
        return self.call("POST", "/api/v1/agent-enroll", token, json={"agentName": name, **body})

    def enrolled(self, token: str, name: str = "agent", **body: Any) -> dict[str, Any]:
        answer = self.enroll(token, name, **body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def service(self, workspace: str, name: str, port: int = 443, **body: Any) -> dict[str, Any]:
        return dict(
            self.manage(
                "POST",
                "/api/v1/services",
                {"name": name, "workspaceId": workspace, "ports": [{"port": port}], **body},
            )
        )

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        items = self.manage("GET", "/api/v1/events?limit=1000")["items"]
        return [item for item in items if kind in (None, item["type"])]

    def peers(self) -> list[dict[str, Any]]:
        return list(self.manage("GET", "/api/v1/peers?limit=1000")["items"])


@pytest.fixture(scope="session")
def make_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A factory of running control planes (context managers); keyword arguments are settings.

    Their gateways have time also on a busy machine.
    """

    @contextmanager
    def make(**options: Any) -> Iterator[Running]:
        directory = options.pop("data_dir", None) or tmp_path_factory.mktemp("server")
        patient = {"gateway_wait": 20, "delete_wait": 20, **options}
        running = Running(ServerSettings(data_dir=directory, port=0, **patient))
        running.start()
        try:
            yield running
        finally:
            running.stop()

    return make


@pytest.fixture
def plane(make_control_plane: Callable[..., Any]) -> Iterator[Running]:
    """A control plane of the test's own."""
    with make_control_plane() as running:
        yield running


@pytest.fixture
def gateway(plane: Running) -> ProtocolGateway:
    """A connected gateway."""
    return plane.gateway()


@pytest.fixture
def wait() -> Callable[..., Any]:
    """Waits for a condition: ``wait("what", condition)``."""
    return wait_for


@pytest.fixture
def key() -> Callable[[], str]:
    """Makes public keys."""
    return new_key
