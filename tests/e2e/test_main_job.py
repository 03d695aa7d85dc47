"""The main job through the real parts: enroll, work, be held to the policy, renew, be gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import httpx
import pytest

from conftest import World
from lattice_sdk import IdentityExpired, Refused
from lattice_server.demo.bare import open_bare_tunnel
from lattice_server.demo.download import Download
from support.waiting import CUT_WITHIN, process_alive, wait_for

PATIENCE = 60.0  # seconds for an answer


def peer_ids(world: World) -> set[str]:
    """The peers of agents that the control plane knows."""
    answer = httpx.get(
        f"{world.fabric.url}/api/v1/peers",
        headers={"Authorization": f"Bearer {world.fabric.admin_token}"},
        params={"workspaceId": world.fabric.workspace},
        timeout=PATIENCE,
    ).raise_for_status()
    return {peer["peerId"] for peer in answer.json()["items"] if peer["kind"] == "agent"}


def gateway_peer_ids(world: World) -> set[str]:
    """The peers that the gateway's data plane has programmed."""
    transport = httpx.HTTPTransport(uds=str(world.fabric.gateway_control))
    with httpx.Client(transport=transport, base_url="http://engine", timeout=PATIENCE) as client:
        return {peer["id"] for peer in client.get("/v1/peers").raise_for_status().json()["peers"]}


def test_designated_service_sees_the_enrolled_overlay_address(world: World) -> None:
    with world.agent() as agent, agent.http_client(timeout=PATIENCE) as http:
        answer = http.get("http://github-tools.lattice/").raise_for_status().json()
        assert answer == {"service": "github-tools", "client": str(agent.overlay_ip).split("/")[0]}


@pytest.mark.anyio
async def test_async_face_does_the_same(world: World) -> None:
    async with world.agent() as agent, agent.async_http_client(timeout=PATIENCE) as http:
        answer = (await http.get("http://search.lattice/")).raise_for_status().json()
        assert answer["client"] == str(agent.overlay_ip).split("/")[0]
        peer = agent.peer_id
    assert peer not in peer_ids(world)
    assert peer not in gateway_peer_ids(world)


def test_undesignated_service_is_refused_at_once_with_a_sentence(world: World) -> None:
    with world.agent() as agent:
        started = time.monotonic()
        with pytest.raises(Refused) as refusal:
            agent.connect(world.addresses["payroll"], 80)
        # A drop instead of a refusal would take a TCP connect timeout: many seconds.
        assert time.monotonic() - started < 10
        assert "sandboxed" in str(refusal.value)
        assert world.addresses["payroll"] in str(refusal.value)
        client = agent.http_client(timeout=PATIENCE)
        with client as http, pytest.raises(Refused, match="sandboxed"):
            http.get(f"http://{world.addresses['payroll']}/")


def test_name_outside_the_policy_is_refused_without_a_lookup(world: World) -> None:
    with world.agent() as agent, pytest.raises(Refused, match=r"api\.example"):
        agent.connect("api.example", 443)


def test_another_agents_address_is_refused(world: World) -> None:
    with (
        world.agent() as agent,
        world.agent(agent_name="neighbour") as other,
        pytest.raises(Refused, match="sandboxed"),
    ):
        agent.connect(str(other.overlay_ip).split("/")[0], 80)


def test_work_longer_than_the_ttl_goes_on(world: World) -> None:
    with world.agent(ttl="10s") as agent:
        first, peer = agent.expires_at, agent.peer_id
        download = Download("http://github-tools.lattice/stream", agent.proxy_env())
        wait_for("two renewals", lambda: (agent.expires_at - first).total_seconds() > 7.0)
        assert agent.peer_id == peer
        now = time.monotonic()
        wait_for("the download to go on", lambda: download.last_byte > now + 0.1)


def test_delete_cuts_a_running_download(world: World) -> None:
    with world.agent() as agent:
        download = Download("http://github-tools.lattice/stream", agent.proxy_env())
        httpx.delete(
            f"{world.fabric.url}/api/v1/peers/{agent.peer_id}",
            headers={"Authorization": f"Bearer {world.fabric.workspace_token}"},
            timeout=PATIENCE,
        ).raise_for_status()
        answered = time.monotonic()
        assert agent.peer_id not in gateway_peer_ids(world)
        wait_for("the download to stop", lambda: download.stopped)
        assert download.last_byte - answered < CUT_WITHIN


def test_leaving_removes_the_peer_everywhere(world: World) -> None:
    with world.agent() as agent:
        peer = agent.peer_id
        assert peer in peer_ids(world)
        assert peer in gateway_peer_ids(world)
    assert peer not in peer_ids(world)
    assert peer not in gateway_peer_ids(world)
    with pytest.raises(Exception, match="closed"):
        agent.connect("github-tools.lattice", 80)


def test_expired_agent_is_cut_off_with_control_plane_and_gateway_daemon_dead(
    broken_world: World,
) -> None:
    """The engine's own deadline is taken away, so that only the gateway's kernel can cut."""
    from lattice_engine import EngineProcess

    engine = EngineProcess.start_netstack()
    try:
        tunnel = open_bare_tunnel(broken_world.fabric, engine, ttl="15s")
        download = Download("http://github-tools.lattice/stream", tunnel.proxy_env)
        broken_world.fabric.kill_server()
        broken_world.fabric.kill_gateway_daemon()
        # Only then is it the kernel alone that ends it, and only of a download that still ran.
        dead = time.monotonic()
        assert dead < tunnel.deadline
        wait_for("bytes of after their death", lambda: download.last_byte > dead)
        assert download.last_byte < tunnel.deadline
        wait_for(
            "the download to stop",
            lambda: time.monotonic() - max(download.last_byte, tunnel.deadline) > 3,
        )
        assert abs(download.last_byte - tunnel.deadline) < CUT_WITHIN
    finally:
        engine.close()


AGENT_PROGRAM = textwrap.dedent(
    """
    import os, sys, threading
    from lattice_sdk import LatticeAgent
    server, token = os.environ["SERVER"], os.environ["TOKEN"]
    agent = LatticeAgent(server=server, token=token, agent_name="killed")
    with agent, agent.http_client() as http:
        http.get("http://github-tools.lattice/").raise_for_status()
        print(agent.peer_id, agent.engine_pid, flush=True)
        threading.Event().wait()
    """
)


def start_agent_program(world: World) -> tuple[subprocess.Popen[str], str, int]:
    program = subprocess.Popen(
        [sys.executable, "-c", AGENT_PROGRAM],
        env={
            "PATH": os.environ["PATH"],
            "SERVER": world.fabric.url,
            "TOKEN": world.fabric.workspace_token,
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    peer, engine = program.stdout.readline().split()
    return program, peer, int(engine)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_agent_removes_its_peer_and_engine(
    world: World, kind: signal.Signals
) -> None:
    program, peer, engine = start_agent_program(world)
    with program:
        assert peer in peer_ids(world)
        program.send_signal(kind)
        wait_for("the peer to be gone", lambda: peer not in peer_ids(world), timeout=10)
        wait_for("the peer to leave the gateway", lambda: peer not in gateway_peer_ids(world))
        wait_for("the engine to end", lambda: not process_alive(engine))
        assert program.wait(60) == -kind


def test_failed_renewals_end_in_identity_expired(broken_world: World) -> None:
    with broken_world.agent() as agent:
        agent.renew(ttl="5s")  # only now: opening takes its time on a busy machine
        broken_world.fabric.kill_server()
        wait_for("the identity to expire", lambda: agent.state == "expired")
        with pytest.raises(IdentityExpired, match=r"peer-"):
            agent.connect("github-tools.lattice", 80)


def test_two_agents_in_one_process_are_two_identities(world: World) -> None:
    with world.agent(agent_name="one") as one, world.agent(agent_name="two") as two:
        assert one.engine_pid == two.engine_pid
        seen: dict[str, Any] = {}
        for agent in (one, two):
            with agent.http_client(timeout=PATIENCE) as http:
                seen[agent.peer_id] = http.get("http://search.lattice/").json()["client"]
        assert seen == {a.peer_id: str(a.overlay_ip).split("/")[0] for a in (one, two)}
        # The proxy of one does not take the credentials of the other.
        stolen = httpx.URL(one.proxy_env()["HTTP_PROXY"]).copy_with(
            userinfo=httpx.URL(two.proxy_env()["HTTP_PROXY"]).userinfo
        )
        with httpx.Client(proxy=str(stolen), timeout=PATIENCE) as http:
            assert http.get("http://search.lattice/").status_code == 407


def test_fifty_agents_in_one_process_share_one_engine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr("lattice_sdk.lifecycle.PROOF", 60.0)  # all shake hands at once

    def work(number: int) -> tuple[str, int]:
        opening = world.agent(agent_name=f"worker-{number}", timeout=120)
        with opening as agent, agent.http_client(timeout=PATIENCE) as http:
            answer = http.get("http://github-tools.lattice/").raise_for_status().json()
            assert answer["client"] == str(agent.overlay_ip).split("/")[0]
            barrier.wait(180)
            return agent.peer_id, agent.engine_pid

    barrier = threading.Barrier(50)
    with ThreadPoolExecutor(50) as pool:
        done = list(pool.map(work, range(50)))
    assert len({peer for peer, _ in done}) == 50
    assert len({engine for _, engine in done}) == 1
    assert not {peer for peer, _ in done} & (peer_ids(world) | gateway_peer_ids(world))
