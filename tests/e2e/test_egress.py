"""Host names of the allow list: reached under their own name, and nothing beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lattice_engine import EngineClient
from lattice_sdk import (
    DestinationUnreachable,
    EgressConnector,
    EgressUnavailable,
    LatticeAgent,
    NotPermitted,
    Refused,
)
from lattice_server.fabric import Fabric
from support.tls import TLSServer, tls_server
from support.waiting import wait_for

MODEL = "api.model.localhost"


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    """A fabric with an egress connector whose workspace permits loopback targets."""
    directory = tmp_path_factory.mktemp("egress")
    patient = {"gateway_wait": 10, "delete_wait": 10}
    with Fabric(directory, server_options=patient, egress=True) as fabric:
        open_loopback(fabric, "dev")
        yield fabric


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TLSServer]:
    """A model API: HTTPS with a certificate for its name."""
    with tls_server(MODEL, tmp_path_factory.mktemp("tls")) as server:
        yield server


def open_loopback(fabric: Fabric, workspace: str) -> None:
    path = f"/api/v1/workspaces/{workspace}/policy"
    fabric.request("PUT", path, {"privateTargets": ["127.0.0.0/8"]})


@pytest.fixture
def agent(fabric: Fabric) -> Callable[..., LatticeAgent]:
    """Makes agents that are to reach these ports of these names."""

    def make(*allow: tuple[str, int], **settings: Any) -> LatticeAgent:
        options: dict[str, Any] = {
            "server": fabric.url,
            "token": fabric.workspace_token,
            "policy_preset": "isolated",
            "allow": [{"to": host, "port": port} for host, port in allow],
        }
        return LatticeAgent(**options | settings)

    return make


def test_a_name_is_reached_under_its_own_name_with_tls_end_to_end(
    model: TLSServer, agent: Callable[..., LatticeAgent]
) -> None:
    with (
        agent((MODEL, model.port)) as alice,
        alice.http_client(verify=model.trust, timeout=60) as http,
    ):
        assert http.get(f"https://{MODEL}:{model.port}/").text == "ok"
        assert model.seen[-1] == (MODEL, f"{MODEL}:{model.port}")


def test_a_program_in_a_sandbox_uses_the_name_as_if_it_were_outside(
    fabric: Fabric, model: TLSServer
) -> None:
    program = (
        "import ssl, sys, urllib.request\n"
        "tls = ssl.create_default_context(cafile=sys.argv[2])\n"
        "for url in sys.argv[1], 'https://127.0.0.1' + sys.argv[1][sys.argv[1].rindex(':'):]:\n"
        "    try:\n"
        "        print(urllib.request.urlopen(url, timeout=60, context=tls).read().decode())\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lattice_sdk", "exec", "--allow", f"{MODEL}:{model.port}"),
            *("--", sys.executable, "-c", program),
            *(f"https://{MODEL}:{model.port}/", str(model.certificate)),
        ],
        env={
            "PATH": os.environ["PATH"],
            "LATTICE_SERVER": fabric.url,
            "LATTICE_TOKEN": fabric.workspace_token,
            "LATTICE_ISOLATION": "required",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    by_name, by_loopback = done.stdout.splitlines()
    assert by_name == "ok"
    assert model.seen[-1] == (MODEL, f"{MODEL}:{model.port}")
    # The name is the way; the server's own address is the sandbox's loopback.
    assert "refused" in by_loopback


def test_clients_trust_the_usual_authorities_where_none_is_named(
    model: TLSServer, agent: Callable[..., LatticeAgent]
) -> None:
    url = f"https://{MODEL}:{model.port}/"

    async def by_async_client(alice: LatticeAgent) -> None:
        async with alice.async_http_client() as http:
            await http.get(url)

    with agent((MODEL, model.port)) as alice, alice.http_client() as http:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            http.get(url)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            asyncio.run(by_async_client(alice))


def test_the_connector_dials_the_name_whatever_the_bytes_ask_for(
    model: TLSServer, agent: Callable[..., LatticeAgent]
) -> None:
    careless = ssl.create_default_context()
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    with agent((MODEL, model.port)) as alice:
        stream = alice.connect(MODEL, model.port)
        with careless.wrap_socket(stream, server_hostname="exfiltrate.example") as tls:
            tls.sendall(
                b"GET http://exfiltrate.example/ HTTP/1.1\r\nHost: exfiltrate.example\r\n\r\n"
            )
            assert tls.recv(64).startswith(b"HTTP/1.1 200")
        assert model.seen[-1] == ("exfiltrate.example", "exfiltrate.example")


def test_what_is_not_on_the_list_is_refused(
    fabric: Fabric, model: TLSServer, agent: Callable[..., LatticeAgent]
) -> None:
    with tls_server("other.localhost", fabric.directory) as other:
        with agent((MODEL, model.port)) as alice, agent((MODEL, other.port)) as bob:
            address = alice.services[0].address
            assert bob.services[0].address == address
            for host, port in (
                ("other.localhost", other.port),
                (MODEL, other.port),
                (address, other.port),
                ("127.0.0.1", model.port),
                ("169.254.169.254", 80),
            ):
                with pytest.raises(Refused):
                    alice.connect(host, port)
            alice.connect(address, model.port).close()
        with agent(policy_preset="sandboxed", allow=()) as eve, pytest.raises(Refused):
            eve.connect(address, model.port)


def test_a_name_that_leads_to_loopback_is_refused_unless_the_workspace_says_so(
    fabric: Fabric, model: TLSServer, agent: Callable[..., LatticeAgent]
) -> None:
    path = "/api/v1/workspaces/dev/policy"

    def told() -> list[dict[str, Any]]:
        page = fabric.request("GET", f"/api/v1/events?type=egress&peerId={alice.peer_id}")
        return list(page["items"])

    def reaches() -> bool:
        try:
            alice.connect(MODEL, model.port).close()
        except DestinationUnreachable:
            return False
        return True

    with agent((MODEL, model.port)) as alice:
        try:
            assert reaches()
            fabric.request("PUT", path, {"privateTargets": ["10.0.0.0/8"]})
            wait_for("the policy to reach the connector", lambda: not reaches())
            (event, *_) = wait_for("the event", told)
        finally:
            open_loopback(fabric, "dev")
        wait_for("the policy to reach the connector", reaches)
    assert event["data"]["destination"] == MODEL
    assert event["data"]["refused"] == "loopback"
    assert event["data"]["source"] == alice.overlay_ip


def test_running_flows_end_with_the_identity(
    model: TLSServer, agent: Callable[..., LatticeAgent]
) -> None:
    with agent((MODEL, model.port)) as alice:
        stream = alice.connect(MODEL, model.port)
    stream.settimeout(5)
    # A socket of the kernel's ends with an error, one through the proxy without.
    with contextlib.suppress(ConnectionAbortedError):
        assert stream.recv(1) == b""


def test_names_outlive_a_connector_that_is_killed(
    fabric: Fabric, model: TLSServer, agent: Callable[..., LatticeAgent]
) -> None:
    with agent((MODEL, model.port)) as alice:
        address = alice.services[0].address
        known = peers(fabric)
        fabric.kill_egress()
        # Its engine ends with it, and takes its identity back.
        wait_for("its peer to be gone", lambda: len(known - peers(fabric)) == 2)
        before = peers(fabric)
        with pytest.raises(EgressUnavailable) as failure:
            agent(("other.localhost", 443), timeout=30).open()
        assert "lattice egress" in str(failure.value)
        assert peers(fabric) == before
        fabric.start_egress()
        wait_for("the name to be served again", lambda: connects(alice, MODEL, model.port))
        assert alice.services[0].address == address


def peers(fabric: Fabric) -> set[str]:
    """Peers of the control plane and of the gateway."""
    page = fabric.request("GET", "/api/v1/peers?limit=1000")
    client = EngineClient(fabric.gateway_control)
    try:
        at_the_gateway = {f"gateway:{peer['id']}" for peer in client.peers()}
    finally:
        client.close()
    return {str(peer["peerId"]) for peer in page["items"]} | at_the_gateway


def connects(agent: LatticeAgent, host: str, port: int) -> bool:
    try:
        agent.connect(host, port, timeout=30).close()
    except (Refused, DestinationUnreachable):
        return False
    return True


def test_a_token_that_does_not_permit_the_name_enrolls_nobody(
    fabric: Fabric, agent: Callable[..., LatticeAgent]
) -> None:
    permits = [{"to": "*.example.org", "port": 443}]
    token = fabric.create_token(kind="workspace", workspaceId="dev", allow=permits)
    before = peers(fabric)
    for host, port in ((MODEL, 443), ("files.example.org", 80), ("example.org", 443)):
        with pytest.raises(NotPermitted, match=host):
            agent((host, port), token=token).open()
    assert peers(fabric) == before
    with agent(("files.example.org", 443), token=token) as alice:
        assert [service.name for service in alice.services] == ["files.example.org"]


def test_a_name_of_a_pattern_is_served_when_a_program_first_uses_it(
    fabric: Fabric, model: TLSServer, agent: Callable[..., LatticeAgent]
) -> None:
    with agent(("*.model.localhost", model.port)) as alice:
        assert not alice.services
        # A program that knows nothing but its proxy.
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import httpx, ssl, sys; tls = ssl.create_default_context(cafile=sys.argv[2])\n"
                "print(httpx.get(sys.argv[1], verify=tls, timeout=60).text)",
                f"https://{MODEL}:{model.port}/",
                str(model.certificate),
            ],
            # Not all of the environment: no program takes a name below localhost to a proxy.
            env={"PATH": os.environ["PATH"], "HTTPS_PROXY": alice.proxy_env()["HTTPS_PROXY"]},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "ok"
        with alice.http_client(verify=model.trust, timeout=60) as http:
            assert http.get(f"https://{MODEL}:{model.port}/").text == "ok"
        with pytest.raises(Refused, match=r"model\.localhost"):
            alice.connect("model.localhost", model.port)
        with pytest.raises(Refused):
            alice.connect(MODEL, model.port + 1)
        alice.refresh()
        assert [service.name for service in alice.services] == [MODEL]
        assert alice.resolve(MODEL) == alice.services[0].address
        assert alice.resolve("another.model.localhost") != alice.services[0].address
        with pytest.raises(NotPermitted):
            alice.resolve("api.anthropic.com")


def test_a_connector_of_another_workspace_serves_its_own(
    fabric: Fabric, model: TLSServer, agent: Callable[..., LatticeAgent]
) -> None:
    fabric.create_workspace("other")
    fabric.request(
        "POST", "/api/v1/services", {"name": "egress", "workspaceId": "other", "kind": "egress"}
    )
    token = fabric.create_token(kind="service", workspaceId="other", service="egress")
    theirs = fabric.create_token(kind="workspace", workspaceId="other", allow=[{"to": "*"}])
    with (
        EgressConnector(fabric.url, token),
        agent((MODEL, model.port)) as alice,
        agent((MODEL, model.port), token=theirs) as bob,
    ):
        # Their workspace has not opened loopback.
        assert not connects(bob, MODEL, model.port)
        open_loopback(fabric, "other")
        wait_for("their policy", lambda: connects(bob, MODEL, model.port))
        with pytest.raises(Refused):
            bob.connect(alice.services[0].address, model.port)


def test_the_command_serves_names(
    tmp_path: Path, fabric: Fabric, agent: Callable[..., LatticeAgent], model: TLSServer
) -> None:
    fabric.create_workspace("by-hand")
    open_loopback(fabric, "by-hand")
    environment = {
        **os.environ,
        "LATTICE_SERVER": fabric.url,
        "LATTICE_TOKEN": fabric.admin_token,
        "LATTICE_WORKSPACE": "by-hand",
    }
    lattice = [sys.executable, "-m", "lattice_sdk"]
    made = subprocess.run(
        [*lattice, "tokens", "create", "--allow", f"{MODEL}:{model.port}", "--quiet"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    with subprocess.Popen(
        [*lattice, "egress", "--output", "json"], env=environment, stdout=subprocess.PIPE
    ) as command:
        try:
            assert command.stdout is not None
            assert json.loads(command.stdout.readline())["ready"]
            with agent((MODEL, model.port), token=made.stdout.strip()) as alice:
                assert connects(alice, MODEL, model.port)
        finally:
            command.terminate()
        assert command.wait(60) == 0
    assert not any(
        peer["workspaceId"] == "by-hand"
        for peer in fabric.request("GET", "/api/v1/peers?limit=1000")["items"]
    )
