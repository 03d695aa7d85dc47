"""The gateway daemon and its real engine, against a control plane that follows the test's script.

A script, because a real control plane sends nothing malformed and nothing that an engine refuses.
"""

import base64
import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.server import Server, ServerConnection, serve

from lattice_engine import EngineClient, EngineError
from lattice_server.ports import free_port
from support.waiting import process_alive, wait_for

TOKEN = "lt-g" + "x" * 43


def peer(name: str, address: str, **more: Any) -> dict[str, Any]:
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    grants = [{"to": "10.96.0.7", "protocol": "tcp", "port": 443}]
    fields = {"id": name, "publicKey": key, "address": address, "expiresIn": 600.0}
    return {**fields, "grants": grants, **more}


class Link:
    """One connection of the gateway, as the control plane has it."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self.hello = self.receive()

    def receive(self) -> dict[str, Any]:
        return json.loads(self.socket.recv(timeout=20))

    def send(self, kind: str, revision: int, *upsert: Any, remove: Any = (), **more: Any) -> None:
        message = {"type": kind, "revision": revision, "upsert": upsert, "remove": list(remove)}
        self.socket.send(json.dumps(message | more))

    def sync(self, revision: int, *upsert: Any) -> None:
        self.send("sync", revision, *upsert, last=True)
        assert self.receive() == {"type": "ack", "revision": revision}


class Script:
    """The control plane: hands the gateway's connections to the test."""

    def __init__(self) -> None:
        self.links: queue.Queue[Link] = queue.Queue()
        self.refuse = 0
        self.port = free_port()  # it comes back there
        self._server: Server | None = None

    def start(self) -> None:
        self._server = serve(
            self._serve,
            "127.0.0.1",
            self.port,
            process_request=self._check,
            close_timeout=1,
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()

    def link(self) -> Link:
        return self.links.get(timeout=20)

    def _check(self, socket: ServerConnection, request: Any) -> Any:
        assert request.path == "/api/v1/gateway/stream"
        if self.refuse:
            return socket.respond(self.refuse, '{"detail": "no such token"}')
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        return None

    def _serve(self, socket: ServerConnection) -> None:
        self.links.put(Link(socket))
        wait_for("the end of the connection", lambda: socket.state.name == "CLOSED", 120)


class Gateway:
    """A gateway daemon as a child process."""

    def __init__(self, script: Script, directory: Path) -> None:
        self.script = script
        self.directory = directory
        self.token = directory / "token"
        self.token.write_text(TOKEN + "\n")
        self.state = directory / "state"
        self.log = directory / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        arguments = ["--server", f"http://127.0.0.1:{self.script.port}", "--listen-port", "0"]
        arguments += ["--token-file", str(self.token), "--state-dir", str(self.state)]
        arguments += ["--namespace", "own", *more]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lattice_server.cli", "gateway", *arguments],
                stdout=log,
                stderr=log,
            )

    @property
    def known(self) -> dict[str, Any]:
        return json.loads((self.state / "gateway.json").read_text())

    def engine(self) -> EngineClient:
        return EngineClient(Path(self.known["control"]))

    def peers(self) -> set[str]:
        return {peer["id"] for peer in self.engine().peers()}

    def signal(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
        with contextlib.suppress(FileNotFoundError, TypeError):
            os.kill(self.known["pid"], signal.SIGKILL)


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    script.start()
    yield script
    script.stop()


@pytest.fixture
def gateway(script: Script, tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(script, tmp_path)
    yield gateway
    gateway.clean_up()


def test_it_says_who_it_is_and_acknowledges_what_is_programmed(
    gateway: Gateway, script: Script
) -> None:
    gateway.start()
    link = script.link()
    assert link.hello["endpoint"] == f"127.0.0.1:{gateway.known['listenPort']}"
    assert link.hello["publicKey"] == gateway.known["publicKey"]
    assert (link.hello["address"], link.hello["overlay"]) == ("10.96.0.1", "10.96.0.0/16")
    link.send("sync", 7, peer("peer-a", "10.96.1.1"), last=False)
    link.send("sync", 7, peer("peer-b", "10.96.1.2"), last=True)
    assert link.receive() == {"type": "ack", "revision": 7}
    assert gateway.peers() == {"peer-a", "peer-b"}
    link.send("update", 8, peer("peer-c", "10.96.1.3"), remove=["peer-a"])
    assert link.receive() == {"type": "ack", "revision": 8}
    assert gateway.peers() == {"peer-b", "peer-c"}
    assert TOKEN not in gateway.log.read_text()


def test_sigterm_ends_the_data_plane_too(gateway: Gateway, script: Script) -> None:
    gateway.start()
    script.link().sync(1)
    engine = gateway.known["pid"]
    assert gateway.signal(signal.SIGTERM) == 0
    assert not process_alive(engine)
    assert not (gateway.state / "engine" / "control.sock").exists()


def test_with_keep_engine_the_next_daemon_takes_it_up(gateway: Gateway, script: Script) -> None:
    gateway.start("--keep-engine")
    script.link().sync(1, peer("peer-a", "10.96.1.1"))
    before = gateway.known
    assert gateway.signal(signal.SIGTERM) == 0
    assert process_alive(before["pid"])
    assert gateway.peers() == {"peer-a"}
    gateway.start()
    script.link()
    assert gateway.known == before
    assert gateway.signal(signal.SIGTERM) == 0
    assert not process_alive(before["pid"])


def test_a_killed_daemons_engine_enforces_on_and_is_adopted(
    gateway: Gateway, script: Script
) -> None:
    gateway.start()
    script.link().sync(1, peer("peer-a", "10.96.1.1"), peer("peer-b", "10.96.1.2", expiresIn=4.0))
    before = gateway.known
    gateway.signal(signal.SIGKILL)
    assert process_alive(before["pid"])
    wait_for("the deadline to be kept without a daemon", lambda: gateway.peers() == {"peer-a"})
    gateway.start()
    link = script.link()
    assert gateway.known == before
    assert link.hello["publicKey"] == before["publicKey"]
    # What happened while nobody listened was kept by the engine and is told now.
    assert [expired["id"] for expired in link.receive()["peers"]] == ["peer-b"]
    link.sync(2, peer("peer-c", "10.96.1.3"))
    assert gateway.peers() == {"peer-c"}


def test_a_killed_engine_is_replaced_with_same_key_port_and_state(
    gateway: Gateway, script: Script
) -> None:
    gateway.start()
    link = script.link()
    link.sync(1, peer("peer-a", "10.96.1.1"))
    before = gateway.known
    os.kill(before["pid"], signal.SIGKILL)
    again = script.link()
    assert again.hello == link.hello
    assert gateway.known["pid"] != before["pid"]
    # Before the control plane has said anything: the daemon knows what was wanted.
    assert gateway.peers() == {"peer-a"}
    again.sync(2, peer("peer-b", "10.96.1.2"))
    assert gateway.peers() == {"peer-b"}


def test_a_killed_engine_is_replaced_while_the_control_plane_is_away(
    gateway: Gateway, script: Script
) -> None:
    gateway.start()
    link = script.link()
    link.sync(1, peer("peer-a", "10.96.1.1"))
    script.stop()
    before = gateway.known["pid"]
    os.kill(before, signal.SIGKILL)
    wait_for("another engine", lambda: gateway.known["pid"] != before)

    def restored() -> bool:
        with contextlib.suppress(EngineError):
            return gateway.peers() == {"peer-a"}
        return False

    wait_for("its state", restored)
    script.start()
    script.link().sync(2)
    assert gateway.peers() == set()


def test_it_comes_back_to_a_restarted_control_plane(gateway: Gateway, script: Script) -> None:
    gateway.start()
    script.link().sync(5, peer("peer-a", "10.96.1.1"))
    engine = gateway.known["pid"]
    script.stop()
    assert gateway.peers() == {"peer-a"}
    script.start()
    script.link().sync(2, peer("peer-b", "10.96.1.2"))
    assert gateway.peers() == {"peer-b"}
    assert gateway.known["pid"] == engine


def test_what_the_engine_refuses_is_refused_and_nothing_else(
    gateway: Gateway, script: Script
) -> None:
    gateway.start()
    link = script.link()
    link.sync(1)
    link.send("update", 2, peer("peer-x", "192.0.2.1"), peer("peer-a", "10.96.1.1"))
    refusal = link.receive()
    assert (refusal["type"], refusal["revision"]) == ("nack", 2)
    assert "peer-x" in refusal["error"]
    link.send("update", 3, peer("peer-b", "10.96.1.2"))
    assert link.receive() == {"type": "ack", "revision": 3}
    assert gateway.peers() == {"peer-a", "peer-b"}


def test_a_peer_that_stays_bad_does_not_hold_up_the_others(
    gateway: Gateway, script: Script
) -> None:
    gateway.start()
    link = script.link()
    state = [peer(f"peer-{n}", f"10.96.1.{n + 1}") for n in range(9)]
    state[4]["address"] = "192.0.2.1"
    link.send("sync", 1, *state, last=True)
    assert link.receive()["type"] == "nack"
    link.socket.close()
    again = script.link()
    again.send("sync", 2, *state, last=True)
    assert again.receive() == {"type": "ack", "revision": 2}
    assert gateway.peers() == {f"peer-{n}" for n in range(9)} - {"peer-4"}


def test_expired_peers_are_reported_also_after_an_outage(gateway: Gateway, script: Script) -> None:
    gateway.start()
    link = script.link()
    link.sync(1, peer("peer-a", "10.96.1.1", expiresIn=3.0))
    report = link.receive()
    assert report["type"] == "expired"
    assert [expired["id"] for expired in report["peers"]] == ["peer-a"]
    assert report["peers"][0]["lateBy"] >= 0
    link.send("update", 2, peer("peer-b", "10.96.1.2", expiresIn=4.0))
    assert link.receive() == {"type": "ack", "revision": 2}
    script.stop()
    wait_for("the deadline", lambda: gateway.peers() == set())
    script.start()
    report = script.link().receive()
    assert [expired["id"] for expired in report["peers"]] == ["peer-b"]


def test_malformed_messages_end_the_connection_not_the_daemon(
    gateway: Gateway, script: Script
) -> None:
    gateway.start()
    link = script.link()
    link.sync(1, peer("peer-a", "10.96.1.1"))
    for rubbish in ("{", "[]", '{"type": "update"}'):
        link.socket.send(rubbish)
        link = script.link()
        assert gateway.peers() == {"peer-a"}
    link.socket.send('{"type": "of a later version"}')
    link.sync(2)


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_token_ends_it_with_a_sentence(gateway: Gateway, script: Script, status: int) -> None:
    script.refuse = status
    gateway.start()
    assert gateway.process is not None
    assert gateway.process.wait(20) == 1
    log = gateway.log.read_text()
    assert "refuses this gateway's token" in log
    assert "no such token" in log
    assert "Traceback" not in log
    assert TOKEN not in log
    assert gateway.known["pid"] is None
    assert not (gateway.state / "engine" / "control.sock").exists()


def test_a_token_revoked_later_does_not_stop_the_data_plane(
    gateway: Gateway, script: Script
) -> None:
    gateway.start()
    link = script.link()
    link.sync(1, peer("peer-a", "10.96.1.1"))
    script.refuse = 401
    link.socket.close()
    wait_for("the refusal", lambda: "refuses this gateway's token" in gateway.log.read_text())
    assert gateway.peers() == {"peer-a"}
    script.refuse = 0
    script.link().sync(2)


def test_two_daemons_cannot_share_a_state_directory(gateway: Gateway, script: Script) -> None:
    gateway.start()
    script.link().sync(1)
    second = Gateway(script, gateway.directory)
    second.log = gateway.directory / "second.log"
    second.start()
    assert second.process is not None
    assert second.process.wait(20) == 1
    assert "another gateway daemon" in second.log.read_text()
    assert process_alive(gateway.known["pid"])


def test_sigterm_ends_it_while_the_control_plane_is_unreachable(
    gateway: Gateway, script: Script
) -> None:
    script.stop()
    gateway.start()
    wait_for("an attempt", lambda: "no stream from" in gateway.log.read_text())
    engine = gateway.known["pid"]
    assert gateway.signal(signal.SIGTERM) == 0
    assert not process_alive(engine)
    script.start()
