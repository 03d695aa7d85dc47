"""The published curl call gives a config that another WireGuard can use, held to the policy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lattice_sdk.testing import World, start_world
from support.netns import NetworkNamespace
from support.waiting import wait_for

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("wireguard-go", "wg", "ip", "curl"))),
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


def test_published_curl_body_works_with_wireguard_go(
    namespace: NetworkNamespace, world_inside: World, tmp_path: Path
) -> None:
    body = {
        "agentName": "code-executor-001",
        "agentType": "code-executor",
        "workspaceId": world_inside.workspace,
        "ttl": "1h",
        "policyPreset": "sandboxed",
    }
    header = tmp_path / "header"
    header.write_text(f"Authorization: Bearer {world_inside.token}\n")
    answer = json.loads(
        namespace.command(
            *("curl", "-sS", "--fail-with-body", "-X", "POST", "-H", f"@{header}"),
            *("-H", "Content-Type: application/json", "-d", json.dumps(body)),
            f"{world_inside.server}/api/v1/agent-enroll",
        )
    )
    assert list(answer)[:5] == [
        "peerId",
        "overlayIP",
        "enrollmentToken",
        "wireguardConfig",
        "expiresAt",
    ]
    name = f"wg{os.getpid()}"  # its socket is in a directory of the whole machine
    config = tmp_path / f"{name}.conf"
    config.write_text(answer["wireguardConfig"])
    config.chmod(0o600)
    stripped = tmp_path / f"{name}.setconf"
    stripped.write_text(namespace.command("wg-quick", "strip", str(config)))
    daemon = namespace.run(
        subprocess.Popen, ["wireguard-go", "-f", name], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(
            "wireguard-go's interface",
            lambda: name in namespace.command("ip", "-o", "link"),
        )
        wait_for("wireguard-go's socket", Path(f"/var/run/wireguard/{name}.sock").exists)
        namespace.command("wg", "setconf", name, str(stripped))
        namespace.command("ip", "address", "add", answer["overlayIP"], "dev", name)
        namespace.command("ip", "link", "set", name, "mtu", "1420", "up")
        namespace.command("ip", "route", "add", "10.96.0.0/16", "dev", name)

        def curl(address: str) -> subprocess.CompletedProcess[str]:
            command = ["curl", "-sS", "--max-time", "10", f"http://{address}/"]
            return namespace.run(subprocess.run, command, capture_output=True, text=True)

        seen = json.loads(curl(world_inside.addresses["github-tools"]).stdout)
        assert seen == {
            "service": "github-tools",
            "client": answer["overlayIP"].removesuffix("/32"),
        }
        refused = curl(world_inside.addresses["payroll"])
        # https://curl.se/docs/manpage.html: 7 is "failed to connect", 28 would be a time-out
        assert refused.returncode == 7, refused
        unused = curl("10.96.255.1")
        assert unused.returncode == 7, unused
        gateway = curl("10.96.0.1")
        assert gateway.returncode in (7, 28), gateway
    finally:
        daemon.terminate()
        daemon.wait(10)
