"""The published curl call gives a config that another WireGuard can use, held to the policy."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lattice_sdk.testing import World, start_world
from support.netns import NetworkNamespace

# https://www.iana.org/assignments/icmp-parameters: an echo, and "destination unreachable" as
# "communication administratively prohibited".
ECHO_REPLY, UNREACHABLE, ECHO, PROHIBITED = 0, 3, 8, 13

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("wireguard-go", "wg-quick", "ip", "curl"))),
    reason="needs root, and wireguard-go, wireguard-tools, iproute2 and curl, as .ci/run installs",
)


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    with NetworkNamespace() as namespace:
        yield namespace


@pytest.fixture
def world_inside(namespace: NetworkNamespace) -> Iterator[World]:
    """The whole fabric in the namespace, so that nothing touches the machine's own network.

    All of it in processes of its own: the SDK's thread of this process may live outside.
    """
    with tempfile.TemporaryDirectory(prefix="inside-") as directory:
        context = start_world(Path(directory))
        yield namespace.run(context.__enter__)
        namespace.run(context.__exit__, None, None, None)


def enroll(namespace: NetworkNamespace, world: World, directory: Path, name: str) -> dict[str, str]:
    """With the published call and no key of its own."""
    body = {
        "agentName": name,
        "agentType": "code-executor",
        "workspaceId": world.workspace,
        "ttl": "1h",
        "policyPreset": "sandboxed",
    }
    header = directory / "header"
    header.write_text(f"Authorization: Bearer {world.token}\n")
    answer: dict[str, str] = json.loads(
        namespace.command(
            *("curl", "-sS", "--fail-with-body", "-X", "POST", "-H", f"@{header}"),
            *("-H", "Content-Type: application/json", "-d", json.dumps(body)),
            f"{world.server}/api/v1/agent-enroll",
        )
    )
    return answer


@contextlib.contextmanager
def up(namespace: NetworkNamespace, answer: dict[str, str], directory: Path) -> Iterator[None]:
    """``wg-quick up`` with the answer's config as it is, until the block's end."""
    name = f"wg{os.getpid()}"  # its socket is in a directory of the whole machine
    config = directory / f"{name}.conf"
    config.write_text(answer["wireguardConfig"])
    config.chmod(0o600)
    # Where the kernel has no WireGuard; else it takes the kernel's.
    environment = {**os.environ, "WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go"}
    namespace.command("wg-quick", "up", str(config), env=environment)
    try:
        yield
    finally:
        namespace.command("wg-quick", "down", str(config), env=environment)


def of_datagram(address: str) -> int:
    """What becomes of a UDP datagram: an error's number, 0 when none comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
        stream.settimeout(20)
        stream.connect((address, 80))
        try:
            stream.send(b"anybody there?")
            stream.recv(1)
        except OSError as error:
            return error.errno or 0
        return 0


def of_ping(address: str) -> tuple[int, int]:
    """Type and code of the ICMP message that answers an echo request."""
    request = struct.pack("!BBHHH", ECHO, 0, 0xFFFF - (ECHO << 8) - 1, 0, 1)  # with its checksum
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as stream:
        stream.settimeout(20)
        stream.sendto(request, (address, 0))
        while True:
            packet = stream.recv(4096)
            message = packet[(packet[0] & 15) * 4 :]  # after the IP header
            if message[0] == ECHO_REPLY or message[28:36] == request:
                return message[0], message[1]


def test_published_curl_body_works_with_wg_quick(
    namespace: NetworkNamespace, world_inside: World, tmp_path: Path
) -> None:
    answer = enroll(namespace, world_inside, tmp_path, "code-executor-001")
    assert list(answer)[:5] == [
        "peerId",
        "overlayIP",
        "enrollmentToken",
        "wireguardConfig",
        "expiresAt",
    ]
    neighbour = enroll(namespace, world_inside, tmp_path, "neighbour")
    with up(namespace, answer, tmp_path):

        def curl(address: str) -> subprocess.CompletedProcess[str]:
            command = ["curl", "-sS", "--max-time", "20", f"http://{address}/"]
            return namespace.run(subprocess.run, command, capture_output=True, text=True)

        tools = world_inside.addresses["github-tools"]
        seen = json.loads(curl(tools).stdout)
        assert seen == {
            "service": "github-tools",
            "client": answer["overlayIP"].removesuffix("/32"),
        }
        other = neighbour["overlayIP"].removesuffix("/32")
        for address in (
            world_inside.addresses["payroll"],
            f"{tools}:81",
            other,
            "10.96.255.1",
            "10.96.0.1",
        ):
            refused = curl(address)
            # https://curl.se/docs/manpage.html: 7 is "failed to connect", 28 would be a time-out
            assert refused.returncode == 7, (address, refused)
        for address in (tools, other):
            assert namespace.run(of_datagram, address) in (errno.ECONNREFUSED, errno.EHOSTUNREACH)
            assert namespace.run(of_ping, address) == (UNREACHABLE, PROHIBITED)
