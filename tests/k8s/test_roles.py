"""``lattice-k8s init`` and ``lattice-k8s sidecar`` as processes; pods come in test_pods.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import time
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from conftest import World
from support.roles import PASSWORD, PodProcesses, named
from support.waiting import wait_for

GRANTED = "http://github-tools.lattice/"


@pytest.fixture
def pod(world: World, tmp_path: Path) -> PodProcesses:
    return PodProcesses(tmp_path, world.fabric.url, world.fabric.workspace_token)


@pytest.fixture
def broken_pod(broken_world: World, tmp_path: Path) -> PodProcesses:
    return PodProcesses(tmp_path, broken_world.fabric.url, broken_world.fabric.workspace_token)


def only(world: World) -> dict[str, object]:
    (peer,) = named(world, "job-4711")
    return peer


def life(peer: dict[str, object]) -> float:
    """Seconds from now to its end; the control plane is on this machine and has its clock."""
    return datetime.fromisoformat(str(peer["expiresAt"])).timestamp() - time.time()


def end(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


def test_sidecar_takes_up_what_init_enrolled_and_gives_it_back(
    world: World, pod: PodProcesses
) -> None:
    status, told = pod.init()
    assert status == 0, told
    enrolled = only(world)
    assert (enrolled["agentType"], enrolled["policyPreset"]) == ("job", "sandboxed")
    with pod.sidecar() as sidecar:
        assert only(world)["peerId"] == enrolled["peerId"]
        seen = pod.get(GRANTED).json()["client"]
        assert f"{seen}/32" == enrolled["overlayIP"]
        refusal = pod.get(f"http://{world.addresses['payroll']}/")
        assert refusal.status_code == 403
        assert "sandboxed" in refusal.json()["detail"]
        assert end(sidecar) == 0
    assert named(world, "job-4711") == []
    assert not (pod.state / "identity.json").exists()


def test_identity_that_nobody_took_up_does_not_linger(world: World, pod: PodProcesses) -> None:
    assert pod.init(LATTICE_TTL="1h")[0] == 0
    assert life(only(world)) <= 120
    with pod.sidecar() as sidecar:
        assert life(only(world)) > 3000
        assert end(sidecar) == 0


def test_what_init_leaves_is_private(world: World, pod: PodProcesses) -> None:
    before = os.umask(0)
    try:
        assert pod.init()[0] == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(pod.state.stat().st_mode) == 0o700
    files = [path for path in pod.state.iterdir() if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    with pod.sidecar() as sidecar:
        assert end(sidecar) == 0


def test_work_longer_than_the_ttl_keeps_its_identity(world: World, tmp_path: Path) -> None:
    fabric = world.fabric
    pod = PodProcesses(tmp_path, fabric.url, fabric.workspace_token, LATTICE_TTL="20s")
    assert pod.init()[0] == 0
    before = only(world)
    with pod.sidecar() as sidecar:
        wait_for("three renewals", lambda: int(str(only(world)["renewals"])) >= 3, 120)
        assert only(world)["peerId"] == before["peerId"]
        assert f"{pod.get(GRANTED).json()['client']}/32" == before["overlayIP"]
        assert end(sidecar) == 0


def test_killed_sidecar_comes_back_as_the_same_identity(world: World, pod: PodProcesses) -> None:
    assert pod.init()[0] == 0
    before = only(world)
    with pod.sidecar() as first:
        first.kill()
        first.wait(60)
    assert only(world)["peerId"] == before["peerId"]
    with pod.sidecar() as second:
        assert only(world)["peerId"] == before["peerId"]
        assert f"{pod.get(GRANTED).json()['client']}/32" == before["overlayIP"]
        assert end(second) == 0
    assert named(world, "job-4711") == []


def test_init_that_runs_again_does_not_enroll_again(world: World, pod: PodProcesses) -> None:
    assert pod.init()[0] == 0
    before = only(world)
    assert pod.init()[0] == 0
    assert only(world)["peerId"] == before["peerId"]
    with pod.sidecar() as sidecar:
        assert end(sidecar) == 0


def test_sidecar_waits_for_a_control_plane_that_is_away(
    broken_world: World, broken_pod: PodProcesses
) -> None:
    assert broken_pod.init()[0] == 0
    before = only(broken_world)
    broken_world.fabric.kill_server()
    with broken_pod.sidecar(ready=False) as sidecar:
        wait_for("the sidecar to answer", lambda: broken_pod.probe("/healthz"))
        answer = broken_pod.probe("/readyz")
        assert answer is not None
        assert answer.status_code == 503
        broken_world.fabric.start_server()
        wait_for("the sidecar to be ready", broken_pod.ready)
        assert only(broken_world)["peerId"] == before["peerId"]
        assert end(sidecar) == 0


def test_sidecar_ends_well_while_the_control_plane_is_away(
    broken_world: World, broken_pod: PodProcesses
) -> None:
    assert broken_pod.init()[0] == 0
    broken_world.fabric.kill_server()
    with broken_pod.sidecar(ready=False) as waiting:
        wait_for("the sidecar to answer", lambda: broken_pod.probe("/healthz"))
        assert end(waiting) == 0
    broken_world.fabric.start_server()
    assert life(only(broken_world)) <= 120
    with broken_pod.sidecar() as sidecar:
        broken_world.fabric.kill_server()
        assert end(sidecar) == 0
    broken_world.fabric.start_server()  # or the connectors take their time to leave


def test_identity_that_ended_is_mourned_where_the_agent_asks(
    broken_world: World, tmp_path: Path
) -> None:
    fabric = broken_world.fabric
    pod = PodProcesses(tmp_path, fabric.url, fabric.workspace_token, LATTICE_TTL="20s")
    assert pod.init()[0] == 0
    peer = str(only(broken_world)["peerId"])
    with pod.sidecar() as sidecar:
        fabric.kill_server()

        def told() -> httpx.Response | None:
            try:
                answer = pod.get(GRANTED)
            except httpx.TransportError:
                return None
            # At its very end the gateway may refuse what the proxy still lets through.
            over = answer.status_code == 502 and answer.json()["code"] == "identity_expired"
            return answer if over else None

        answer = wait_for("the proxy to tell the end", told, 120)
        assert peer in answer.json()["detail"]
        ready, healthy = pod.probe("/readyz"), pod.probe("/healthz")
        assert ready is not None
        assert healthy is not None
        assert (ready.status_code, healthy.status_code) == (503, 200)
        assert "time is over" in ready.json()["detail"]
        assert end(sidecar) == 0
    fabric.start_server()  # or the connectors take their time to leave


def test_revoked_identity_is_not_replaced(world: World, pod: PodProcesses) -> None:
    assert pod.init()[0] == 0
    peer = str(only(world)["peerId"])
    world.fabric.request("DELETE", f"/api/v1/peers/{peer}")
    with pod.sidecar(ready=False) as sidecar:
        told = sidecar.communicate(timeout=60)[1]
    assert sidecar.returncode == 16
    assert f"error: the saved identity {peer} is over" in told.splitlines()[-2]
    assert named(world, "job-4711") == []


@pytest.mark.parametrize(
    ("environment", "status", "sentence"),
    [
        ({"LATTICE_TOKEN_FILE": "/nowhere"}, 3, "/nowhere cannot be read"),
        ({"LATTICE_PRESET": "omnipotent"}, 6, "preset"),
        ({"LATTICE_SERVER": "http://127.0.0.1:9", "LATTICE_TIMEOUT": "20"}, 8, "127.0.0.1:9"),
        ({"LATTICE_TTL": "soon"}, 3, "LATTICE_TTL"),
        ({"LATTICE_ALLOW": "10.96.0.7"}, 3, "LATTICE_ALLOW"),
        ({"LATTICE_AGENT_NAME": ""}, 3, "LATTICE_AGENT_NAME"),
        ({"LATTICE_MODE": "teleport"}, 3, "LATTICE_MODE"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_init_that_fails_says_what_to_do(
    world: World, pod: PodProcesses, environment: dict[str, str], status: int, sentence: str
) -> None:
    found, told = pod.init(**environment)
    assert found == status, told
    assert sentence in told
    assert told.splitlines()[-2].startswith("error: ")
    assert told.splitlines()[-1].startswith("  what to do: ")
    assert named(world, "job-4711") == []


def test_allow_list_reaches_the_control_plane(world: World, tmp_path: Path) -> None:
    fabric = world.fabric
    token = fabric.create_token(
        kind="workspace", workspaceId=fabric.workspace, presets=["isolated"], allowIsolated=True
    )
    search = world.addresses["search"]
    pod = PodProcesses(
        tmp_path, fabric.url, token, LATTICE_PRESET="isolated", LATTICE_ALLOW=f"{search}:80"
    )
    status, told = pod.init()
    assert status == 0, told
    with pod.sidecar() as sidecar:
        assert pod.get(f"http://{search}/").json()["service"] == "search"
        assert pod.get(f"http://{world.addresses['github-tools']}/").status_code == 403
        assert end(sidecar) == 0


def test_pod_deleted_while_it_enrolls_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pod = PodProcesses(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", "lt-w")
        with pod.start("init", token=True) as init:
            connection, _ = silent.accept()
            init.send_signal(signal.SIGTERM)
            assert init.wait(60) == 128 + signal.SIGTERM
            connection.close()
            assert init.stderr is not None
            assert "Traceback" not in init.stderr.read()


def test_proxy_without_the_pods_password_serves_nobody(world: World, pod: PodProcesses) -> None:
    assert pod.init()[0] == 0
    with pod.sidecar() as sidecar:
        for userinfo in ("", "pod:@", f"root:{PASSWORD}@", "pod:guess@"):
            proxy = f"http://{userinfo}{pod.proxy.rpartition('@')[2]}"
            with httpx.Client(proxy=proxy) as http:
                assert http.get(GRANTED).status_code == 407
        assert end(sidecar) == 0


def test_port_for_probes_that_is_taken_is_told(world: World, pod: PodProcesses) -> None:
    assert pod.init()[0] == 0
    port = int(pod.health.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), pod.sidecar(ready=False) as sidecar:
        told = sidecar.communicate(timeout=60)[1]
        assert sidecar.returncode == 3
        assert f"port {port}" in told
        assert "--health-port" in told
    with pod.sidecar() as sidecar:
        assert end(sidecar) == 0


def test_nothing_secret_is_told(world: World, pod: PodProcesses) -> None:
    assert pod.init()[0] == 0
    saved = json.loads((pod.state / "identity.json").read_text())
    with pod.sidecar() as sidecar:
        taken = json.loads((pod.state / "identity.json").read_text())
        pod.get(GRANTED)
        answers = [answer.text for path in ("/readyz", "/healthz") if (answer := pod.probe(path))]
        assert end(sidecar) == 0
    secrets = [world.fabric.workspace_token, PASSWORD]
    secrets += [document[key] for document in (saved, taken) for key in TOLD_TO_NOBODY]
    told = "".join([*pod.told, *answers])
    assert "job-4711" in told
    assert not [secret for secret in secrets if secret in told]


TOLD_TO_NOBODY = ("privateKey", "enrollmentToken")


def test_other_words_are_wrong_usage(pod: PodProcesses) -> None:
    with pod.start("agent", token=False) as process:
        assert "usage: lattice-k8s init|sidecar|wait" in process.communicate(timeout=60)[1]
    assert process.returncode == 2
