"""Nothing of the host's network is reached from a sandbox, by whatever kind of socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from lattice_sdk import LatticeAgent
from lattice_sdk.testing.world import World
from support.targets import GROUP, Targets, own_addresses, own_addresses6
from support.waiting import wait_for

Held = Callable[..., object]
ROOT = os.geteuid() == 0
ADDRESSES = own_addresses()
AT_ONCE = 2.5  # seconds; an attempt that is let to time out takes 3


def test_the_sandbox_has_the_network_that_is_granted(
    inside: Held, agent: LatticeAgent, lattice_world: World
) -> None:
    """Else all that follows would prove nothing."""
    request = "GET / HTTP/1.0\r\nHost: github-tools.lattice\r\n\r\n"
    for host in ("github-tools.lattice", lattice_world.addresses["github-tools"]):
        got = inside("tcp", host=host, port=80, send=request, until="}")
        assert got.reached, got.why
        assert f'"client": "{agent.overlay_ip}"' in got.why


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_host_is_not_reached(host: Targets, held: Held, protocol: str, address: str) -> None:
    caught = held(protocol, host=address, port=getattr(host, protocol))
    assert caught.seconds < AT_ONCE, "not refused but left to time out"


@pytest.mark.parametrize(
    "address", [*own_addresses6(), "::ffff:127.0.0.1", f"::ffff:{ADDRESSES[-1]}"]
)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_host_is_not_reached_by_ipv6(
    host: Targets, held: Held, protocol: str, address: str
) -> None:
    mapped = address.startswith("::ffff:")
    held(protocol, host=address, port=getattr(host, protocol if mapped else f"{protocol}6"))


def test_the_unspecified_address_is_the_sandbox_itself(host: Targets, held: Held) -> None:
    held("tcp", host="0.0.0.0", port=host.tcp)


def test_multicast_does_not_leave(host: Targets, held: Held) -> None:
    held("multicast", group=GROUP, port=host.multicast, interface="127.0.0.1")


def test_broadcast_does_not_leave(host: Targets, held: Held, inside: Held) -> None:
    held("udp", host="127.255.255.255", port=host.udp, broadcast=True)
    before = len(host.seen)
    assert not inside("udp", host="255.255.255.255", port=host.udp, broadcast=True).reached
    assert len(host.seen) == before


@pytest.mark.parametrize("address", ADDRESSES)
def test_name_server_of_the_host_is_not_asked(host: Targets, held: Held, address: str) -> None:
    held("resolve", name="secret.attacker.example", server=address, port=host.dns)


def test_lookup_finds_services_and_nothing_else(
    inside: Held, agent: LatticeAgent, lattice_world: World
) -> None:
    found = inside("lookup", name="github-tools.lattice")
    assert found.why == lattice_world.addresses["github-tools"]
    unknown = inside("lookup", name="secret.attacker.example")
    assert not unknown.reached
    assert unknown.seconds < AT_ONCE


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "10.255.255.53"])
@pytest.mark.parametrize("port", [53, 443, 853])
def test_public_name_servers_are_refused(inside: Held, address: str, port: int) -> None:
    assert not inside("resolve", name="x.example", server=address, port=port).reached


# 127.0.0.1 is the sandbox's own, and may be pinged.
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("address", [a for a in ADDRESSES if not a.startswith("127.")])
def test_ping_does_not_reach_the_host(held: Held, inside: Held, address: str, raw: bool) -> None:
    if ROOT and raw:
        held("ping", host=address, raw=raw)
    else:  # outside an ordinary user may have neither kind of socket
        assert not inside("ping", host=address, raw=raw).reached


def test_raw_sockets_are_not_to_be_had(inside: Held, host: Targets) -> None:
    assert not inside("raw_tcp", host=ADDRESSES[-1], port=host.tcp).reached
    assert not inside("packet_socket").reached


@pytest.mark.parametrize(
    "number",
    [socket.AF_VSOCK, 38, 33, 30, 31, 16 + 1],
    ids=["vsock", "alg", "rxrpc", "tipc", "bt", "packet"],
)
def test_families_that_know_no_namespaces_are_not_to_be_had(inside: Held, number: int) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW):
        assert not inside("family", number=number, kind=kind).reached


def test_spoofed_source_reaches_nobody(
    inside: Held, lattice_world: World, agent: LatticeAgent
) -> None:
    with LatticeAgent(**lattice_world.settings()) as other:
        for target in (lattice_world.addresses["github-tools"], agent.overlay_ip):
            attempt = inside("spoof", source=other.overlay_ip, host=target, port=80)
            assert not attempt.reached, attempt.why


def test_other_agents_are_refused(inside: Held, lattice_world: World) -> None:
    with LatticeAgent(**lattice_world.settings()) as other:
        for protocol in ("tcp", "udp"):
            caught = inside(protocol, host=other.overlay_ip, port=80)
            assert not caught.reached
            assert caught.seconds < AT_ONCE
        assert not inside("ping", host=other.overlay_ip, raw=False).reached


def test_gateway_answers_nothing_but_pings(
    inside: Held, agent: LatticeAgent, lattice_world: World
) -> None:
    gateway = ".".join([*agent.overlay_ip.split(".")[:2], "0", "1"])
    for port in (22, 53, 80, 443, 51820):
        for protocol in ("tcp", "udp"):
            caught = inside(protocol, host=gateway, port=port)
            assert not caught.reached
            assert caught.seconds < AT_ONCE


def test_control_plane_is_not_reached(held: Held, lattice_world: World) -> None:
    server = urlsplit(lattice_world.server)
    request = "GET /healthz HTTP/1.0\r\n\r\n"
    held("tcp", host=server.hostname, port=server.port, send=request)


def test_metadata_service_is_refused_and_the_attempt_is_on_record(
    inside: Held, agent: LatticeAgent, lattice_world: World
) -> None:
    caught = inside("tcp", host="169.254.169.254", port=80)
    assert not caught.reached
    assert caught.seconds < AT_ONCE
    path = f"/api/v1/events?type=denied&peerId={agent.peer_id}"
    wait_for(
        "the attempt to be in the event log",
        lambda: any(
            event["data"].get("destination") == "169.254.169.254"
            for event in lattice_world.request("GET", path)["items"]
        ),
    )


def test_proxy_of_the_agent_is_not_reached(held: Held, agent: LatticeAgent, host: Targets) -> None:
    """From inside not at all, and outside not without its secret."""
    proxy = urlsplit(agent.proxy_env()["HTTP_PROXY"])
    request = "GET http://github-tools.lattice/ HTTP/1.0\r\n\r\n"
    held("tcp", host=proxy.hostname, port=proxy.port, send=request)
