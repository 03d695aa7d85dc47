"""Sub-agents through the real parts: what they reach, that they are cut to their parent, when."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import httpx
import pytest

from conftest import World
from lattice_sdk import IdentityClosed, LatticeAgent, LatticeError, NotPermitted, Refused
from lattice_server.demo.bare import open_bare_tunnel
from lattice_server.demo.download import Download
from support.waiting import CUT_WITHIN, wait_for


def peers_at_the_gateway(world: World) -> set[str]:
    transport = httpx.HTTPTransport(uds=str(world.fabric.gateway_control))
    with httpx.Client(transport=transport, base_url="http://engine") as client:
        return {peer["id"] for peer in client.get("/v1/peers").raise_for_status().json()["peers"]}


@pytest.mark.anyio
async def test_sub_agent_works_under_an_identity_of_its_own(world: World) -> None:
    async with world.agent(agent_name="lead", policy_preset="coordinator") as lead:
        helper = await lead.delegate("searcher", policy_preset="sandboxed", ttl="10m")
        assert helper.parent_ref == lead.peer_id
        assert helper.expires_at <= lead.expires_at
        secret = helper.token.get_secret_value()
        assert secret not in repr(helper)
        async with LatticeAgent(**helper.settings()) as searcher:
            assert searcher.peer_id != lead.peer_id
            assert searcher.overlay_ip != lead.overlay_ip
            async with searcher.async_http_client() as http:
                answer = await http.get("http://github-tools.lattice/")
                assert answer.json()["client"] == searcher.overlay_ip
                with pytest.raises(Refused):
                    await http.get(f"http://{world.addresses['payroll']}/")
                # No ingress was delegated, and the lead, which has it, is not the searcher's.
                with pytest.raises(Refused):
                    await http.get(f"http://{lead.overlay_ip}/")
        with pytest.raises(LatticeError) as refused:
            async with LatticeAgent(**helper.settings()):
                pass
        assert refused.value.code == "token_used_up"


def test_blocking_program_delegates_what_it_has_and_no_more(world: World) -> None:
    with world.agent() as agent:
        with pytest.raises(NotPermitted) as refused:
            agent.delegate_sync("boss", policy_preset="coordinator")
        assert refused.value.code == "preset_not_permitted"
        tools = world.addresses["github-tools"]
        helper = agent.delegate_sync(
            "reader", policy_preset="isolated", allow=[{"to": tools, "port": 80}]
        )
        with LatticeAgent(**helper.settings()) as reader, reader.http_client() as http:
            assert [service.name for service in reader.services] == ["github-tools"]
            assert http.get("http://github-tools.lattice/").status_code == 200
            with pytest.raises(Refused):
                reader.connect(world.addresses["search"], 80)
    with pytest.raises(IdentityClosed):
        agent.delegate_sync("late")


def test_connections_of_a_sub_agent_die_with_its_parent(world: World) -> None:
    with world.agent() as parent:
        helper = parent.delegate_sync("helper")
        with LatticeAgent(**helper.settings()) as child:
            download = Download("http://github-tools.lattice/stream", child.proxy_env())
            assert child.peer_id in peers_at_the_gateway(world)
            parent.close()
            closed = time.monotonic()
            assert peers_at_the_gateway(world).isdisjoint({parent.peer_id, child.peer_id})
            wait_for("the download to stop", lambda: download.stopped)
            assert download.last_byte - closed < CUT_WITHIN
            with pytest.raises(LatticeError):
                child.renew()


def test_sub_agent_ends_with_its_parent_with_control_plane_and_gateway_daemon_dead(
    broken_world: World,
) -> None:
    """It was promised ten hours beneath a parent of seconds; only the gateway's kernel says no."""
    from lattice_engine import EngineProcess

    fabric, engine = broken_world.fabric, EngineProcess.start_netstack()
    try:
        with broken_world.agent(ttl="12s") as parent:
            helper = parent.delegate_sync("bare", ttl="1h", max_lifetime="10h")
            fabric.workspace_token = helper.token.get_secret_value()
            tunnel = open_bare_tunnel(fabric, engine)  # which asks for an hour
            # Not asked before, as the parent may have been renewed meanwhile.
            deadline = time.monotonic() + parent.expires_at.timestamp() - time.time()
            assert tunnel.deadline <= deadline + 0.01
            download = Download("http://github-tools.lattice/stream", tunnel.proxy_env)
            fabric.kill_server()
            fabric.kill_gateway_daemon()
            wait_for("the end", lambda: time.monotonic() - max(download.last_byte, deadline) > 3)
            assert abs(download.last_byte - tunnel.deadline) < CUT_WITHIN
    finally:
        engine.close()


def test_line_is_shown_by_the_command(world: World) -> None:
    with world.agent(agent_name="lead") as lead:
        helper = lead.delegate_sync("helper")
        with LatticeAgent(**helper.settings()) as child:
            shown = subprocess.run(
                [sys.executable, "-m", "lattice_sdk", "peers", "get", child.peer_id],
                env={
                    "LATTICE_SERVER": world.fabric.url,
                    "LATTICE_TOKEN": world.fabric.workspace_token,
                },
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            assert lead.peer_id in shown
            assert "lead" in shown


PROGRAM = textwrap.dedent(
    """
    import os, sys
    from lattice_sdk import LatticeAgent
    with LatticeAgent(agent_name="helper") as agent, agent.http_client() as http:
        print(http.get("http://github-tools.lattice/").json()["client"], agent.overlay_ip)
    """
)


def test_delegation_is_handed_to_another_process(world: World) -> None:
    with world.agent() as parent:
        helper = parent.delegate_sync("helper")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={
                "LATTICE_SERVER": helper.server,
                "LATTICE_TOKEN": helper.token.get_secret_value(),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        seen, own = done.stdout.split()
        assert seen == own != parent.overlay_ip
