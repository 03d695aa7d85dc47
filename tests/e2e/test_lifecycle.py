"""Hooks, backends, resume: what surrounds the main job of an identity."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import World
from lattice_sdk import LatticeError, hookimpl
from lattice_sdk.backends import Tunnel, TunnelBackend, TunnelSpec
from lattice_sdk.identity import Identity
from lattice_sdk.plugins import manager
from support.waiting import process_alive, wait_for


class Recorder:
    """A plugin that writes down what it is told of one agent: others live in this process too."""

    AGENT = "recorded"

    def __init__(self, raising: bool = False) -> None:
        self.raising = raising
        self.calls: list[str] = []

    def note(self, identity: Identity, name: str) -> None:
        if identity.agent_name != self.AGENT:
            return
        self.calls.append(name)
        if self.raising:
            raise RuntimeError(f"the hook {name} fails on purpose")

    @hookimpl
    def lattice_enrolled(self, identity: Identity) -> None:
        self.note(identity, "enrolled")

    @hookimpl
    def lattice_tunnel_up(self, identity: Identity, backend: str, phases: dict[str, float]) -> None:
        assert phases
        self.note(identity, f"tunnel_up {backend}")

    @hookimpl
    def lattice_renewed(self, identity: Identity) -> None:
        self.note(identity, "renewed")

    @hookimpl
    def lattice_expired(self, identity: Identity, reason: str) -> None:
        assert reason
        self.note(identity, "expired")

    @hookimpl
    def lattice_closed(self, identity: Identity) -> None:
        self.note(identity, "closed")


@pytest.fixture
def plugin(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    recorder = Recorder(getattr(request, "param", False))
    manager().register(recorder)
    yield recorder
    manager().unregister(recorder)


@pytest.mark.parametrize("plugin", [False, True], indirect=True, ids=["quiet", "raising"])
def test_hooks_fire_in_order_and_one_that_raises_changes_nothing(
    world: World, plugin: Recorder
) -> None:
    opening = world.agent(agent_name=plugin.AGENT)
    with opening as agent, agent.http_client(timeout=60) as http:
        agent.renew()
        assert http.get("http://github-tools.lattice/").status_code == 200
    wait_for("the last hook", lambda: "closed" in plugin.calls)
    assert plugin.calls == ["enrolled", f"tunnel_up {agent.backend}", "renewed", "closed"]


def test_expiry_tells_the_hooks(broken_world: World, plugin: Recorder) -> None:
    with broken_world.agent(agent_name=plugin.AGENT) as agent:
        agent.renew(ttl="5s")  # only now: opening takes its time on a busy machine
        broken_world.fabric.kill_server()
        wait_for("the identity to expire", lambda: agent.state == "expired")
        wait_for("the hook", lambda: "expired" in plugin.calls)


class BrokenBackend(TunnelBackend):
    """A tunnel backend that cannot."""

    name = "broken"

    def unavailable(self) -> str | None:
        return None

    async def open(self, spec: TunnelSpec) -> Tunnel:
        raise OSError("no tunnel today")


def test_backend_that_raises_leaves_no_peer(world: World) -> None:
    class Plugin:
        @hookimpl
        def lattice_tunnel_backends(self) -> list[Any]:
            return [BrokenBackend()]

    path = f"/api/v1/peers?workspaceId={world.fabric.workspace}"
    before = {peer["peerId"] for peer in world.fabric.request("GET", path)["items"]}
    plugin = Plugin()
    manager().register(plugin)
    try:
        with pytest.raises(LatticeError, match="no tunnel today"):
            world.agent(backend="broken").open()
    finally:
        manager().unregister(plugin)
    assert {p["peerId"] for p in world.fabric.request("GET", path)["items"]} <= before


RESUMED = textwrap.dedent(
    """
    import json, sys, threading
    from lattice_sdk import LatticeAgent
    with LatticeAgent(agent_name="resumed", state_dir=sys.argv[1]) as agent:
        with agent.http_client() as http:
            client = http.get("http://github-tools.lattice/").json()["client"]
        print(json.dumps([agent.peer_id, agent.overlay_ip, client, agent.engine_pid]), flush=True)
        if sys.argv[2] == "wait":
            threading.Event().wait()
    """
)


def run_resumed(world: World, state: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RESUMED, str(state), mode],
        env={
            "PATH": os.environ["PATH"],
            "LATTICE_SERVER": world.fabric.url,
            "LATTICE_TOKEN": world.fabric.workspace_token,
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_process_takes_its_identity_up_again(world: World) -> None:
    with tempfile.TemporaryDirectory(prefix="state-") as name:
        state = Path(name) / "agent"
        with run_resumed(world, state, "wait") as first:
            assert first.stdout is not None
            peer, address, client, engine = json.loads(first.stdout.readline())
            assert client == address
            assert stat.S_IMODE(state.stat().st_mode) == 0o700
            files = [path for path in state.rglob("*") if path.is_file()]
            assert files
            assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
            first.send_signal(signal.SIGKILL)
            first.wait(60)
            wait_for("the engine to end", lambda: not process_alive(engine))
        with run_resumed(world, state, "leave") as second:
            assert second.stdout is not None
            assert json.loads(second.stdout.readline())[:3] == [peer, address, address]
            assert second.wait(60) == 0
        path = f"/api/v1/peers?workspaceId={world.fabric.workspace}"
        assert peer not in {p["peerId"] for p in world.fabric.request("GET", path)["items"]}


def test_full_disk_for_the_state_fails_cleanly(world: World) -> None:
    path = f"/api/v1/peers?workspaceId={world.fabric.workspace}"
    before = {peer["peerId"] for peer in world.fabric.request("GET", path)["items"]}
    with pytest.raises(LatticeError) as raised:
        world.agent(state_dir="/dev/full/state").open()
    assert "/dev/full" in str(raised.value)
    assert {p["peerId"] for p in world.fabric.request("GET", path)["items"]} <= before
