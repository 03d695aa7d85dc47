"""The command against the real fabric: what it prints, how it fails, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import World
from lattice_sdk import Refused
from lattice_sdk.testing.tools import ToolService
from support.waiting import wait_for

LATTICE = [sys.executable, "-m", "lattice_sdk"]


class Shell:
    """Runs ``lattice`` with a token of the world's."""

    def __init__(self, world: World, token: str) -> None:
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "COLUMNS": "200",
            "LATTICE_SERVER": world.fabric.url,
            "LATTICE_TOKEN": token,
            "LATTICE_WORKSPACE": world.fabric.workspace,
        }

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*LATTICE, *words],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def read(self, *words: str) -> Any:
        done = self.run(*words, "--output", "json")
        assert done.returncode == 0, done.stderr
        read = json.loads(done.stdout)
        return read.get("items", read)

    @contextmanager
    def start(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [*LATTICE, *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def admin(world: World) -> Shell:
    return Shell(world, world.fabric.admin_token)


@pytest.fixture
def member(world: World) -> Shell:
    return Shell(world, world.fabric.workspace_token)


def test_identity_from_enrollment_to_deletion(member: Shell, tmp_path: Path) -> None:
    config = tmp_path / "wg0.conf"
    made = member.read("enroll", "by-hand", "--ttl", "5m", "--config-out", str(config))
    peer = made["peerId"]
    assert "PrivateKey" in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600
    assert "wireguardConfig" not in made or "PrivateKey" not in str(made["wireguardConfig"])
    assert peer in {one["peerId"] for one in member.read("peers", "list")}
    assert member.read("peers", "get", peer)["name"] == "by-hand"
    table = member.run("peers", "list")
    assert peer in table.stdout
    assert yaml.safe_load(member.run("peers", "get", peer, "-o", "yaml").stdout)["peerId"] == peer
    assert member.run("peers", "delete", peer).returncode == 0
    assert peer not in {one["peerId"] for one in member.read("peers", "list")}
    gone = member.run("peers", "get", peer)
    assert gone.returncode == 7
    assert peer in gone.stderr


def test_sub_agent_from_delegation_to_its_parents_end(
    member: Shell, world: World, tmp_path: Path
) -> None:
    parent = member.read("enroll", "lead", "--preset", "coordinator")
    holder = Shell(world, parent["enrollmentToken"])
    file = tmp_path / "helper.token"
    words = ("peers", "delegate", parent["peerId"], "helper", "--ttl", "5m")
    made = holder.read(*words, "--preset", "sandboxed", "--out", str(file))
    assert made["parentRef"] == parent["peerId"]
    assert file.stat().st_mode & 0o777 == 0o600
    secret = holder.run(*words, "--quiet").stdout.strip()
    assert secret != file.read_text().strip()
    child = Shell(world, file.read_text().strip()).read("enroll", "helper")
    table = member.run("peers", "get", child["peerId"]).stdout
    assert f"{parent['peerId']} (lead, coordinator)" in table
    wider = Shell(world, child["enrollmentToken"]).run(
        "peers", "delegate", child["peerId"], "x", "--preset", "coordinator"
    )
    assert wider.returncode == 5
    assert "coordinator reaches further than sandboxed" in wider.stderr
    assert member.run("peers", "delete", parent["peerId"]).returncode == 0
    assert child["peerId"] not in {one["peerId"] for one in member.read("peers", "list")}


def test_line_of_delegations_is_shown_from_its_first_to_its_last(
    member: Shell, world: World
) -> None:
    line = [member.read("enroll", "lead", "--preset", "coordinator")]
    for name in ("planner", "searcher"):
        holder = Shell(world, line[-1]["enrollmentToken"])
        words = ("peers", "delegate", line[-1]["peerId"], name, "--preset", "coordinator")
        secret = holder.run(*words, "--ttl", "5m", "--quiet").stdout.strip()
        line.append(Shell(world, secret).read("enroll", name, "--preset", "coordinator"))
    ids = [one["peerId"] for one in line]
    shown = [f"{one} ({name}, coordinator)" for one, name in zip(ids, NAMES_OF_LINE, strict=True)]
    rows = {}
    for one in ids:
        done = member.run("peers", "get", one)
        assert done.returncode == 0, done.stderr
        rows[one] = dict(
            map(str.strip, row.split(maxsplit=1)) for row in done.stdout.splitlines() if " " in row
        )
    assert rows[ids[2]]["chain"] == " > ".join(shown[:2])
    assert rows[ids[1]]["chain"] == shown[0]
    assert rows[ids[1]]["subAgents"] == shown[2]
    assert rows[ids[0]]["subAgents"] == shown[1]
    [above, between] = member.read("peers", "get", ids[2])["chain"]
    assert [above["peerId"], between["peerId"]] == ids[:2]
    assert member.run("peers", "delete", ids[0]).returncode == 0


NAMES_OF_LINE = ("lead", "planner", "searcher")


def test_token_with_limits_is_shown_once(admin: Shell, world: World) -> None:
    made = admin.read("tokens", "create", "--max-ttl", "1m", "--uses", "1")
    secret = made["token"]
    listed = admin.run("tokens", "list", "--output", "json").stdout
    assert made["id"] in listed
    assert secret not in listed
    limited = Shell(world, secret)
    assert limited.run("enroll", "too-long", "--ttl", "1h").returncode in (5, 6)
    peer = limited.read("enroll", "fits", "--ttl", "1m")["peerId"]
    used_up = limited.run("enroll", "again", "--ttl", "1m")
    assert used_up.returncode in (4, 5)
    assert secret not in used_up.stderr
    assert admin.run("peers", "delete", peer).returncode == 0
    assert admin.run("tokens", "revoke", made["id"]).returncode == 0
    assert limited.run("enroll", "after", "--ttl", "1m").returncode == 4


def test_token_is_bound_rotated_and_revoked_with_its_agents(
    admin: Shell, world: World, tmp_path: Path
) -> None:
    words = ("--agent-type", "code-*", "--source", "127.0.0.0/8", "--delegation-depth", "0")
    made = admin.read("tokens", "create", *words)
    assert (made["agentTypes"], made["sources"]) == (["code-*"], ["127.0.0.0/8"])
    holder = Shell(world, made["token"])
    refused = holder.run("enroll", "payroll")
    assert refused.returncode == 5
    assert "code-*" in refused.stderr
    peer = holder.read("enroll", "code-1")["peerId"]
    file = tmp_path / "fresh.token"
    rotated = admin.read("tokens", "rotate", made["id"], "--out", str(file))
    assert rotated["id"] == made["id"]
    assert holder.run("enroll", "code-2").returncode == 4
    assert Shell(world, file.read_text().strip()).run("peers", "get", peer).returncode == 0
    assert admin.run("tokens", "revoke", made["id"], "--agents").returncode == 0
    assert peer not in {one["peerId"] for one in admin.read("peers", "list")}


def test_service_is_added_and_removed(admin: Shell) -> None:
    added = admin.read("services", "add", "calendar", "--port", "443", "--port", "53/udp")
    assert added["hostnames"] == ["calendar.lattice"]
    (listed,) = [s for s in admin.read("services", "list") if s["name"] == "calendar"]
    ports = {(port["port"], port["protocol"]) for port in listed["ports"]}
    assert ports == {(443, "tcp"), (53, "udp")}
    assert admin.run("services", "remove", "calendar").returncode == 0
    assert "calendar" not in {one["name"] for one in admin.read("services", "list")}


def test_connector_serves_a_tool_until_sigterm(admin: Shell, world: World) -> None:
    with ToolService("notes") as tool:
        words = ["connect", "notes", "--listen", "80", "--to", tool.target, "--proxy-protocol"]
        with admin.start(*words, "--output", "json") as process:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            with world.agent() as agent, agent.http_client() as http:
                answer = http.get("http://notes.lattice/").raise_for_status().json()
                assert answer["client"] == agent.overlay_ip
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
        (service,) = [s for s in admin.read("services", "list") if s["name"] == "notes"]
        assert service["connected"] is False
        assert ready["overlayIP"] == service["address"]
    assert admin.run("services", "remove", "notes").returncode == 0


def test_events_are_followed_and_filtered(admin: Shell, world: World) -> None:
    payroll = world.addresses["payroll"]
    with admin.start("events", "--follow", "--type", "denied", "-o", "json") as process:
        assert process.stdout is not None
        with world.agent() as agent:
            with pytest.raises(Refused):
                agent.connect(payroll, 80)
            for line in process.stdout:
                event = json.loads(line)
                assert event["type"] == "denied"
                if event["peerId"] == agent.peer_id:
                    break
            peer = agent.peer_id
    assert event["data"]["destination"] == payroll
    mine = admin.read("events", "--peer", peer)
    assert mine[0]["type"] == "enrolled"
    assert {event["peerId"] for event in mine} == {peer}
    assert {event["type"] for event in mine} == {"enrolled", "denied", "revoked"}


def test_unknown_event_type_is_refused(admin: Shell) -> None:
    assert admin.run("events", "--type", "imaginary").returncode == 6


def test_doctor_proves_a_tunnel_and_leaves_nothing(member: Shell) -> None:
    done = member.run("doctor", "--output", "json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["can"]["userspace"] is True
    assert report["can"]["netns"] is True
    assert "tunnel" in {check["check"] for check in report["checks"]}
    assert not [check for check in report["checks"] if check["verdict"] == "failed"]
    wait_for("its peer to be gone", lambda: "doctor" not in member.run("peers", "list").stdout)


TUNNELS = {"sandbox", "interface"}


@pytest.mark.parametrize(
    ("environment", "failed", "skipped"),
    [
        ({"LATTICE_SERVER": "http://127.0.0.1:9"}, {"control plane"}, {"clock", "token", "tunnel"}),
        ({"LATTICE_TOKEN": "lt-somebody-elses"}, {"token"}, {"tunnel"}),
        ({"LATTICE_ENGINE": "/nonexistent"}, {"engine", "tunnel"}, {"gateway", *TUNNELS}),
    ],
    ids=["server", "token", "engine"],
)
def test_doctor_names_what_failed_and_what_to_change(
    member: Shell, environment: dict[str, str], failed: set[str], skipped: set[str]
) -> None:
    done = member.run("doctor", "--output", "json", **environment)
    assert done.returncode == 1, done.stdout
    report = json.loads(done.stdout)
    assert report["ok"] is False
    checks = {check["check"]: check for check in report["checks"]}
    assert {name for name, check in checks.items() if check["verdict"] == "failed"} == failed
    assert {name for name, check in checks.items() if check["verdict"] == "skipped"} == skipped
    assert all(checks[name]["detail"] and checks[name]["change"] for name in failed)
    told = member.run("doctor", **environment)
    assert told.returncode == 1
    for secret in (member.environment["LATTICE_TOKEN"], "lt-somebody-elses"):
        assert secret not in done.stdout + done.stderr + told.stdout + told.stderr


def test_doctor_says_what_forbids_sandboxes(member: Shell) -> None:
    """As in a container whose /proc is masked."""
    if os.getuid() != 0:
        pytest.skip("changes the machine's mounts")
    command = [sys.executable, "-m", "lattice_sdk", "doctor", "--output", "json"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", 'mount -t tmpfs t /proc/bus; exec "$@"', "sh", *command],
        env=member.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    report = json.loads(done.stdout)
    assert report["can"]["netns"] is False
    found = next(check for check in report["checks"] if check["check"] == "sandbox")
    assert found["verdict"] == "missing"
    assert "/proc/bus hides a part of /proc" in found["detail"]


def test_plugins_and_versions_are_listed(member: Shell) -> None:
    assert "lattice_tunnel_backends" in member.run("plugins", "-o", "json").stdout
    assert "lattice-sdk" in member.run("version").stdout


@pytest.mark.parametrize(
    ("words", "environment", "status"),
    [
        (("peers", "list"), {"LATTICE_SERVER": "http://127.0.0.1:9"}, 8),
        (("peers", "list"), {"LATTICE_TOKEN": "lt-somebody-elses"}, 4),
        (("peers", "list"), {"LATTICE_SERVER": ""}, 3),
        (("tokens", "list"), {}, 5),
        (("peers", "get", "peer-nobody"), {}, 7),
        (("enroll", "x", "--preset", "omnipotent"), {}, 6),
        (("enroll", "x", "--ttl", "1x"), {}, 6),
        (("enroll",), {}, 2),
        (("no-such-command",), {}, 2),
    ],
)
def test_failure_has_its_status_and_says_what_to_do(
    member: Shell, words: tuple[str, ...], environment: dict[str, str], status: int
) -> None:
    done = member.run(*words, **environment)
    assert done.returncode == status, done.stderr
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    for secret in (member.environment["LATTICE_TOKEN"], "lt-somebody-elses"):
        assert secret not in done.stderr


def test_failure_is_json_for_programs(member: Shell) -> None:
    done = member.run("peers", "get", "peer-nobody", "--output", "json")
    problem = json.loads(done.stderr)
    assert done.returncode == 7
    assert problem["code"] == "peer_not_found"
    assert problem["exitCode"] == 7
    assert "peer-nobody" in problem["detail"]


# Ctrl-C while `lattice` is still importing; in the body of a class Python may make an error of it.
INTERRUPTED = """
import os, signal, sys
from lattice_sdk.cli import app

class Interrupting:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.SIGINT)

def build():
    if sys.argv[1] == "class":
        class Thing:
            attribute = Interrupting()
    os.kill(os.getpid(), signal.SIGINT)

app.build = build
app.main()
"""


@pytest.mark.parametrize("place", ["function", "class"])
def test_interrupt_is_no_defect(place: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, place],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_reader_that_leaves_is_no_error(admin: Shell) -> None:
    command = " ".join([*LATTICE, "events"])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1"],
        env=admin.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
