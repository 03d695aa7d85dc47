"""Policy that changes under running agents, presets of a workspace's own, advertised networks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from conftest import World
from lattice_sdk import DestinationUnreachable, LatticeAgent, NetworkConnector, Refused
from support.machine import own_address
from support.waiting import wait_for

# Seconds from a change of the policy to its effect on running agents. It takes less than one; the
# rest is for a machine that is busy with other tests.
AT_ONCE = 5.0


@contextmanager
def stream(agent: LatticeAgent, host: str) -> Iterator[Callable[[], bool]]:
    """An endless download; the value tells whether bytes came within the last 0.3 s."""
    last = time.monotonic()
    with agent.connect(host, 80) as connection:
        connection.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        connection.settimeout(5)

        def read() -> None:
            nonlocal last
            try:
                while connection.recv(65536):
                    last = time.monotonic()
            except OSError:
                return

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        yield lambda: time.monotonic() - last < 0.3
        with suppress(OSError):  # a flow that was cut is reset
            connection.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def change(world: World, name: str, **what: Any) -> None:
    path = f"/api/v1/services/{name}?workspaceId={world.fabric.workspace}"
    world.fabric.request("PATCH", path, what)


def set_policy(world: World, **policy: Any) -> None:
    path = f"/api/v1/workspaces/{world.fabric.workspace}/policy"
    world.fabric.request("PUT", path, policy)


def connects(agent: LatticeAgent, host: str, port: int = 80) -> bool:
    try:
        agent.connect(host, port, timeout=30).close()
    except (Refused, DestinationUnreachable):
        # Until the agent has looked, it takes a refusal of what it was granted for a dead target.
        return False
    return True


def test_a_service_that_loses_its_designation_is_cut_under_running_agents(world: World) -> None:
    with world.agent() as agent:
        address = world.addresses["search"]
        with stream(agent, "search.lattice") as flows, stream(agent, "github-tools.lattice") as on:
            wait_for("both to flow", lambda: flows() and on())
            try:
                change(world, "search", designated=False)
                wait_for("the flow to be cut", lambda: not flows(), timeout=AT_ONCE)
                assert not connects(agent, address)
                wait_for("the other one to go on", on)
            finally:
                change(world, "search", designated=True)
            wait_for("the way back", lambda: connects(agent, address), timeout=AT_ONCE)


def test_an_agent_learns_new_names_by_asking_or_by_being_refused(world: World) -> None:
    with world.agent() as agent:
        assert not connects(agent, "payroll.lattice")
        try:
            agent.refresh()  # the refusal has it look by itself: not from now on
            change(world, "payroll", designated=True)
            assert "payroll" not in {service.name for service in agent.services}
            agent.refresh()
            assert "payroll" in {service.name for service in agent.services}
            assert connects(agent, "payroll.lattice")
            change(world, "payroll", hostnames=["wages.example"])
            # Nobody asks: the refusal itself has it looked up.
            wait_for("the new name", lambda: connects(agent, "wages.example"))
        finally:
            change(world, "payroll", designated=False, hostnames=["payroll.lattice"])


def test_an_agent_that_says_no_preset_has_the_one_that_its_token_names(world: World) -> None:
    token = world.fabric.create_token(
        kind="workspace", workspaceId=world.fabric.workspace, presets=["coordinator"]
    )
    with LatticeAgent(server=world.fabric.url, token=token) as planner:
        planner.listen(7100).close()  # which a sandboxed one may not


def test_a_preset_of_the_workspace_is_enforced_and_changes_at_once(world: World) -> None:
    set_policy(world, presets={"auditor": {"egress": ["service:payroll"], "ingress": ["agents"]}})
    token = world.fabric.create_token(
        kind="workspace", workspaceId=world.fabric.workspace, presets=["auditor", "coordinator"]
    )
    try:
        with (
            world.agent(token=token, policy_preset="auditor") as auditor,
            world.agent(token=token, policy_preset="coordinator") as planner,
            auditor.listen(7100) as listener,
        ):
            assert connects(auditor, "payroll.lattice")
            assert not connects(auditor, world.addresses["search"])
            planner.connect(auditor.overlay_ip, 7100).close()
            listener.accept()[0].close()
            with stream(auditor, "payroll.lattice") as flows:
                wait_for("the download", flows)
                set_policy(world, presets={"auditor": {"egress": ["services"], "ingress": []}})
                wait_for("the flow to be cut", lambda: not flows(), timeout=AT_ONCE)
            assert connects(auditor, world.addresses["search"])
            assert not connects(planner, auditor.overlay_ip, 7100)
            set_policy(world)
            assert not connects(auditor, world.addresses["search"])
    finally:
        set_policy(world)


@pytest.fixture
def office() -> Iterator[tuple[str, int]]:
    """A server in a network of this machine: it greets with the address that it was called at."""
    with socket.create_server((own_address(), 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(connection.getsockname()[0].encode())

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()
        server.shutdown(socket.SHUT_RDWR)


def greeted(agent: LatticeAgent, host: str, port: int) -> str:
    with agent.connect(host, port, timeout=30) as connection:
        connection.settimeout(30)
        return connection.recv(64).decode()


def test_an_advertised_network_is_reached_as_far_as_allow_list_and_token_go(
    world: World, office: tuple[str, int]
) -> None:
    address, port = office
    workspace = {"workspaceId": world.fabric.workspace}
    body = {"name": "office", "kind": "network", "networks": [f"{address}/32"], **workspace}
    world.fabric.request("POST", "/api/v1/services", body)
    token = world.fabric.create_token(kind="service", service="office", **workspace)
    permitted = world.fabric.create_token(
        kind="workspace", allow=[{"to": f"{address}/32", "port": port}], **workspace
    )
    try:
        with (
            NetworkConnector(world.fabric.url, token, "office", networks=[f"{address}/32"]),
            world.agent(
                token=permitted, policy_preset="isolated", allow=[{"to": address, "port": port}]
            ) as agent,
            world.agent() as sandboxed,
        ):
            assert greeted(agent, address, port) == address
            for other, host, number in (
                (agent, address, port + 1),
                (agent, "192.0.2.77", port),
                (sandboxed, address, port),
            ):
                with pytest.raises(Refused):
                    other.connect(host, number)
            # The connector goes: what it advertised is nobody's.
            world.fabric.request(
                "DELETE", f"/api/v1/services/office?workspaceId={world.fabric.workspace}"
            )
            assert not connects(agent, address, port)
    finally:
        names = {one["name"] for one in services(world)}
        if "office" in names:
            path = f"/api/v1/services/office?workspaceId={world.fabric.workspace}"
            world.fabric.request("DELETE", path)


def services(world: World) -> list[dict[str, Any]]:
    path = f"/api/v1/services?workspaceId={world.fabric.workspace}"
    return list(world.fabric.request("GET", path)["items"])


def test_the_command_advertises_networks(world: World, office: tuple[str, int]) -> None:
    address, port = office
    world.fabric.create_workspace("branch")
    environment = {
        **os.environ,
        "LATTICE_SERVER": world.fabric.url,
        "LATTICE_TOKEN": world.fabric.admin_token,
        "LATTICE_WORKSPACE": "branch",
    }
    command = [sys.executable, "-m", "lattice_sdk", "connect", "branch-office"]
    command += ["--advertise", f"{address}/32", "--output", "json"]
    token = world.fabric.create_token(
        kind="workspace", workspaceId="branch", allow=[{"to": "0.0.0.0/0"}]
    )
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["networks"] == [f"{address}/32"]
            with world.agent(
                token=token, policy_preset="isolated", allow=[{"to": f"{address}/32", "port": port}]
            ) as agent:
                assert greeted(agent, address, port) == address
        finally:
            process.terminate()
        assert process.wait(60) == 0
    world.fabric.request("DELETE", "/api/v1/services/branch-office?workspaceId=branch")
