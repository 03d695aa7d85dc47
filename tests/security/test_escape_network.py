"""Nothing of the host's network is reached from a sandbox, by whatever kind of socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from lattice_sdk import LatticeAgent
from lattice_sdk.testing.world import World
from lattice_sdk.wgconfig import parse
from support.attempts import Attempt, in_own_namespaces, outside
from support.inside import Inside, OfAgent
from support.listening import Record, listening
from support.targets import GROUP, MDNS, Targets, own_addresses, own_addresses6
from support.waiting import wait_for

Held = Callable[..., Attempt]
ROOT = os.geteuid() == 0
ADDRESSES = own_addresses()
RESOLVED = 5.0  # seconds; the C library asks again after so many (resolv.conf(5))
ASK = "GET / HTTP/1.0\r\nHost: github-tools.lattice\r\n\r\n"
# Where the C library and programs ask for names, systemd-resolved(8), nscd(8), avahi-daemon(8).
RESOLVERS = ["/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/var/run/nscd/socket"]
RESOLVERS += ["/run/avahi-daemon/socket", "/run/dbus/system_bus_socket"]


@pytest.fixture(scope="module")
def permitted(lattice_world: World) -> Iterator[OfAgent]:
    """Inside the sandbox of an agent that may reach those that listen."""
    settings = lattice_world.settings(policy_preset="coordinator", isolation="required")
    with LatticeAgent(**settings) as agent:
        yield OfAgent(agent)


@pytest.fixture(scope="module")
def record(lattice_world: World) -> Iterator[Record]:
    """Of what reaches an agent that listens."""
    settings = lattice_world.settings(policy_preset="coordinator", isolation="required")
    with LatticeAgent(**settings) as agent, listening(agent) as record:
        yield record


def gateway(inside: Inside) -> str:
    return ".".join([*inside.overlay_ip.split(".")[:2], "0", "1"])


def refused(attempt: Attempt) -> None:
    """It did not get through, and was told so instead of being left to time out."""
    assert not attempt.reached, attempt.why
    assert "timed out" not in attempt.why


def test_the_sandbox_has_the_network_that_is_granted(inside: Inside, lattice_world: World) -> None:
    """Else all that follows would prove nothing."""
    for host in ("github-tools.lattice", lattice_world.addresses["github-tools"]):
        got = inside("tcp", host=host, port=80, send=ASK, until="}")
        assert got.reached, got.why
        assert f'"client": "{inside.overlay_ip}"' in got.why


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_host_is_not_reached(host: Targets, held: Held, protocol: str, address: str) -> None:
    caught = held(protocol, host=address, port=getattr(host, protocol))
    refused(caught)


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


def may_broadcast(address: str) -> bool:
    """Whether this machine has a way to it: to the whole network only where there is one."""
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return datagrams.connect_ex((address, 9)) == 0


BROADCASTS = ["127.255.255.255", *filter(may_broadcast, ["255.255.255.255"])]


@pytest.mark.parametrize("address", BROADCASTS)
def test_broadcast_does_not_leave(host: Targets, inside: Inside, address: str) -> None:
    attempt = {"host": address, "port": host.udp, "broadcast": True}
    free = outside("udp", **attempt)
    assert free.reached, f"the attempt proves nothing, it fails outside too: {free.why}"
    before = len(host.seen)
    assert not inside("udp", **attempt).reached
    assert len(host.seen) == before


def test_neighbours_are_not_asked_for_names(host: Targets, held: Held) -> None:
    held("multicast", group=MDNS[0], port=MDNS[1], interface="127.0.0.1")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_name_server_of_the_host_is_not_asked(
    host: Targets, held: Held, protocol: str, address: str
) -> None:
    name = "secret.attacker.example"
    held("resolve", name=name, server=address, port=host.dns, protocol=protocol)


@pytest.mark.parametrize("path", RESOLVERS)
def test_resolver_of_the_host_is_not_asked(inside: Inside, path: str) -> None:
    if os.path.exists(path):  # it need not understand what it is told
        free = outside("unix", path=path)
        assert free.reached or free.why in ("timed out", "closed without an answer"), free.why
    caught = inside("unix", path=path)
    assert not caught.reached
    assert "Permission denied" in caught.why


def test_lookup_finds_services_and_nothing_else(inside: Inside, lattice_world: World) -> None:
    found = inside("lookup", name="github-tools.lattice")
    assert found.why == lattice_world.addresses["github-tools"]
    unknown = inside("lookup", name="secret.attacker.example")
    assert not unknown.reached
    assert unknown.seconds < RESOLVED


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "10.255.255.53"])
@pytest.mark.parametrize("port", [53, 443, 853])
def test_public_name_servers_are_refused(inside: Inside, address: str, port: int) -> None:
    for protocol in ("tcp", "udp"):
        caught = inside("resolve", name="x.example", server=address, port=port, protocol=protocol)
        refused(caught)


# 127.0.0.1 is the sandbox's own, and may be pinged.
@pytest.mark.parametrize("address", [a for a in ADDRESSES if not a.startswith("127.")])
def test_ping_does_not_reach_the_host(inside: Inside, address: str) -> None:
    free = inside("ping", host=gateway(inside), raw=False)
    assert free.reached, f"the attempt proves nothing, what may be pinged is not: {free.why}"
    # Who may ping outside is up to the machine (icmp(7), ping_group_range), but for root.
    free = outside("ping", host=address, raw=ROOT)
    denied = "Permission denied" in free.why and not ROOT
    assert free.reached or denied, f"the attempt proves nothing, the host is silent: {free.why}"
    assert not inside("ping", host=address, raw=False).reached


# Others than root have no such sockets outside, but have them in a network of their own.
FREE, NEAR = (outside, ADDRESSES[-1]) if ROOT else (in_own_namespaces, "127.0.0.1")


def test_raw_sockets_are_not_to_be_had(held: Held, host: Targets) -> None:
    held("ping", free=FREE, host=NEAR, raw=True)
    held("raw_tcp", free=FREE, host=NEAR, port=host.tcp)
    held("packet_socket", free=FREE)


NETLINK, UEVENTS, KEYS = 16, 15, 15  # linux/socket.h, linux/netlink.h


@pytest.mark.parametrize(
    ("number", "protocol", "everywhere"),
    [
        (NETLINK, UEVENTS, True),
        (17, 0, True),
        (socket.AF_VSOCK, 0, False),
        (38, 0, False),
        (33, 0, False),
        (30, 0, False),
        (31, 0, False),
        (44, 0, False),
        (KEYS, 2, False),
    ],
    ids=["uevents", "packet", "vsock", "alg", "rxrpc", "tipc", "bt", "xdp", "key"],
)
def test_families_that_know_no_namespaces_are_not_to_be_had(
    inside: Inside, number: int, protocol: int, everywhere: bool
) -> None:
    kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW]
    arguments = {"number": number, "kinds": kinds, "protocol": protocol}
    free = [outside("family", **arguments), in_own_namespaces("family", **arguments)]
    reached = any(each.reached for each in free)
    lacking = all("Address family not supported" in each.why for each in free)
    assert reached or (lacking and not everywhere), f"the attempt proves nothing: {free}"
    caught = inside("family", **arguments)
    assert not caught.reached
    assert set(caught.why.split("; ")) <= {
        "[Errno 97] Address family not supported by protocol",
        "[Errno 93] Protocol not supported",
    }


def test_spoofed_source_reaches_nobody(inside: Inside, permitted: OfAgent, record: Record) -> None:
    """The datagram of one who may not, from the address of one who may."""
    at = {"host": record.address, "port": record.port}
    own, spoofed = f"of its owner, before {inside.peer_id}", f"spoofed by {inside.peer_id}"
    owners = ("udp", permitted.overlay_ip, own)

    def came() -> bool:
        permitted("spoof", source=permitted.overlay_ip, text=own, **at)
        return owners in record.seen

    wait_for("the owner's own datagram to come", came)
    for _ in range(3):
        inside("spoof", source=permitted.overlay_ip, text=spoofed, **at)
    pass_on(inside, permitted, record)
    assert spoofed not in record.texts()


def pass_on(inside: Inside, permitted: OfAgent, record: Record) -> None:
    """Wait until what was sent from inside would have come."""
    assert inside("tcp", host="github-tools.lattice", port=80, send=ASK).reached
    last = f"last, after {inside.peer_id} {len(record.seen)}"
    at = {"source": permitted.overlay_ip, "host": record.address, "port": record.port}

    def came() -> bool:
        permitted("spoof", text=last, **at)  # again: any datagram may be lost
        return last in record.texts()

    wait_for("a later datagram to come", came)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_other_agents_are_refused(
    inside: Inside, permitted: OfAgent, record: Record, protocol: str
) -> None:
    free = permitted(protocol, host=record.address, port=record.port)
    assert free.reached, f"the attempt proves nothing, nobody may: {free.why}"
    caught = inside(protocol, host=record.address, port=record.port)
    refused(caught)
    pass_on(inside, permitted, record)
    assert not record.of(inside.overlay_ip)


def test_other_agents_are_not_pinged(inside: Inside, record: Record) -> None:
    assert inside("ping", host=gateway(inside), raw=False).reached
    assert not inside("ping", host=record.address, raw=False).reached


def test_gateway_answers_nothing_but_pings(inside: Inside) -> None:
    free = inside("ping", host=gateway(inside), raw=False)
    assert free.reached, f"the attempts prove nothing, there is no way to it: {free.why}"
    for port in (22, 53, 80, 443, 51820):
        for protocol in ("tcp", "udp"):
            caught = inside(protocol, host=gateway(inside), port=port)
            refused(caught)


def test_control_of_the_gateway_is_not_reached(held: Held, lattice_world: World) -> None:
    held("unix", path=str(lattice_world.gateway_control))


@pytest.mark.parametrize("address", ADDRESSES)
def test_wireguard_of_the_gateway_is_not_reached(
    inside: Inside, agent: LatticeAgent, address: str
) -> None:
    """It answers nobody whom it does not know; where nothing listens, the kernel does."""
    config = agent._identity().wireguard_config
    assert config is not None
    port = int(parse(config.get_secret_value()).endpoint.rpartition(":")[2])
    free = outside("udp", host=address, port=port)
    assert free.why == "timed out", f"the attempt proves nothing: {free.why}"
    caught = inside("udp", host=address, port=port)
    assert "Connection refused" in caught.why or "No route" in caught.why


def test_control_plane_is_not_reached(held: Held, lattice_world: World) -> None:
    server = urlsplit(lattice_world.server)
    request = "GET /healthz HTTP/1.0\r\n\r\n"
    held("tcp", host=server.hostname, port=server.port, send=request)


def test_metadata_service_is_refused_and_the_attempt_is_on_record(
    inside: Inside, lattice_world: World
) -> None:
    caught = inside("tcp", host="169.254.169.254", port=80)
    refused(caught)
    path = f"/api/v1/events?type=denied&peerId={inside.peer_id}"
    wait_for(
        "the attempt to be in the event log",
        lambda: any(
            event["data"].get("destination") == "169.254.169.254"
            for event in lattice_world.request("GET", path)["items"]
        ),
    )


def test_proxy_of_the_agent_is_not_reached(held: Held, agent: LatticeAgent) -> None:
    """From inside not at all, and outside not without its secret."""
    proxy = urlsplit(agent.proxy_env()["HTTP_PROXY"])
    request = "GET http://github-tools.lattice/ HTTP/1.0\r\n\r\n"
    answer = outside("tcp", host=proxy.hostname, port=proxy.port, send=request)
    assert answer.why.split()[1] == "407"
    held("tcp", host=proxy.hostname, port=proxy.port, send=request)
