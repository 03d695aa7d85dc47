"""The whole fabric as processes: started, broken, put together again, gone."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lattice_engine import EngineClient, EngineError
from lattice_server import ports
from lattice_server.fabric import Fabric, FabricError
from support.waiting import process_alive, processes_mentioning, wait_for

# Also on a busy machine its gateway takes a peer in time.
PATIENT = {"gateway_wait": 15}


def enroll(fabric: Fabric, **more: object) -> dict[str, Any]:
    answer = httpx.post(
        f"{fabric.url}/api/v1/agent-enroll",
        headers={"Authorization": f"Bearer {fabric.workspace_token}"},
        json={"agentName": "code-executor-001", **more},
        timeout=20,
        trust_env=False,
    )
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def programmed(fabric: Fabric) -> set[str]:
    client = EngineClient(fabric.gateway_control)
    try:
        return {peer["id"] for peer in client.peers()}
    except EngineError:
        return set()
    finally:
        client.close()


@pytest.fixture
def fabric(tmp_path: Path) -> Iterator[Fabric]:
    with Fabric(tmp_path / "fabric", server_options=PATIENT) as fabric:
        yield fabric


def test_an_enrolled_peer_is_programmed_when_the_answer_comes(fabric: Fabric) -> None:
    assert enroll(fabric)["peerId"] in programmed(fabric)


def test_nothing_is_left_and_secrets_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "fabric"
    with Fabric(directory) as fabric:
        pids = [fabric.server_pid, fabric.gateway_pid, fabric.engine_pid]
        assert all(process_alive(pid) for pid in pids)
        secrets = [fabric.admin_token, fabric.workspace_token]
        secrets.append((directory / "gateway.token").read_text().strip())
        for _, command in processes_mentioning(str(directory)):
            assert not any(secret in command for secret in secrets)
        for pid in pids:
            environment = Path(f"/proc/{pid}/environ").read_text()
            assert not any(secret in environment for secret in secrets)
    assert not any(process_alive(pid) for pid in pids)
    assert processes_mentioning(str(directory)) == []
    sockets = [path for path in directory.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert sockets == []
    for log in directory.glob("*.log"):
        assert not any(secret in log.read_text() for secret in secrets)
    fabric.stop()


def test_the_directory_can_be_used_again(tmp_path: Path) -> None:
    with Fabric(tmp_path, server_options=PATIENT) as fabric:
        peer = enroll(fabric)["peerId"]
    with Fabric(tmp_path, server_options=PATIENT) as fabric:
        assert peer in programmed(fabric)


def test_port_that_somebody_took_after_it_was_chosen_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:

        def free_port(host: str) -> int:
            chosen.append(ports.free_port(host) if chosen else taken.getsockname()[1])
            return chosen[-1]

        monkeypatch.setattr("lattice_server.fabric.free_port", free_port)
        with Fabric(tmp_path, server_options=PATIENT) as fabric:
            assert fabric.url.endswith(f":{chosen[1]}")
            assert enroll(fabric)["peerId"] in programmed(fabric)


def test_start_that_fails_otherwise_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []

    def free_port(host: str) -> int:
        chosen.append(ports.free_port(host))
        return chosen[-1]

    monkeypatch.setattr("lattice_server.fabric.free_port", free_port)
    with pytest.raises(FabricError, match="the server ended with"):
        Fabric(tmp_path, server_options={"overlay": "none"}).start()
    assert len(chosen) == 1


def test_restarted_control_plane_has_the_same_url_and_peers(fabric: Fabric) -> None:
    url, peer = fabric.url, enroll(fabric)["peerId"]
    fabric.kill_server()
    assert peer in programmed(fabric)
    fabric.start_server()
    assert fabric.url == url

    def enrolls() -> bool:
        try:
            return enroll(fabric)["peerId"] in programmed(fabric)
        except AssertionError:
            return False

    wait_for("the gateway to be back", enrolls)
    assert peer in programmed(fabric)


def test_killed_gateway_daemon_is_replaced_around_its_engine(fabric: Fabric) -> None:
    engine, peer = fabric.engine_pid, enroll(fabric)["peerId"]
    fabric.kill_gateway_daemon()
    assert fabric.gateway_pid is None
    assert peer in programmed(fabric)
    fabric.start_gateway_daemon()
    assert fabric.engine_pid == engine
    assert {peer, enroll(fabric)["peerId"]} <= programmed(fabric)


def test_killed_engine_is_replaced_with_all_peers(fabric: Fabric) -> None:
    engine, peer = fabric.engine_pid, enroll(fabric)["peerId"]
    fabric.kill_engine()
    wait_for("another engine", lambda: fabric.engine_pid != engine)
    wait_for("the peer", lambda: peer in programmed(fabric))


def test_stop_ends_an_engine_whose_daemon_is_dead(tmp_path: Path) -> None:
    with Fabric(tmp_path) as fabric:
        engine = fabric.engine_pid
        fabric.kill_gateway_daemon()
        fabric.kill_server()
        assert process_alive(engine)
    assert not process_alive(engine)
    assert processes_mentioning(str(tmp_path)) == []


@pytest.mark.parametrize("daemon_dead", [False, True])
def test_all_ends_when_the_fabrics_process_is_killed(tmp_path: Path, daemon_dead: bool) -> None:
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from lattice_server.fabric import Fabric
        fabric = Fabric(Path(sys.argv[1]))
        fabric.start()
        if sys.argv[2] == "True":
            fabric.kill_gateway_daemon()
        print(fabric.engine_pid, flush=True)
        time.sleep(120)
    """)
    command = [sys.executable, "-c", script, str(tmp_path), str(daemon_dead)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    engine = int(parent.stdout.readline())
    assert process_alive(engine)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for("the end of all processes", lambda: not processes_mentioning(str(tmp_path)))
    assert not process_alive(engine)


def test_a_part_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(FabricError, match="overlay") as failure:
        Fabric(tmp_path, server_options={"overlay": "10.96.0.0/31"}).start()
    assert "server ended with exit status" in str(failure.value)
    assert processes_mentioning(str(tmp_path)) == []


def test_refused_management_calls_say_why(fabric: Fabric) -> None:
    with pytest.raises(FabricError, match="HTTP 4"):
        fabric.create_token(kind="no such kind")


def test_tool_service_gets_a_token(fabric: Fabric) -> None:
    token = fabric.create_service("github-tools", [{"port": 443, "protocol": "tcp"}])
    assert token.startswith("lt-")
    assert [service["name"] for service in enroll(fabric)["services"]] == ["github-tools"]


def test_dev_prints_what_to_export_and_leaves_nothing() -> None:
    command = [sys.executable, "-c", "import lattice_server.cli as c, typer; a = typer.Typer();"]
    command[-1] += "a.command()(c.server); a.command()(c.dev); a()"
    dev = subprocess.Popen(
        [*command, "dev", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert dev.stdout is not None
    try:
        line = json.loads(dev.stdout.readline() or f'"{dev.communicate()[1]}"')
        directory = Path(line["directory"])
        url = f"{line['LATTICE_SERVER']}/healthz"
        assert httpx.get(url, trust_env=False, timeout=30).is_success
        assert line["LATTICE_TOKEN"].startswith("lt-")
        assert line["LATTICE_WORKSPACE"] == "dev"
        # What Ctrl-C in a terminal does: the signal to the whole group in the foreground.
        os.killpg(dev.pid, signal.SIGINT)
        assert dev.wait(30) == 0
    finally:
        dev.kill()
        dev.communicate()
    assert not directory.exists()
    assert processes_mentioning(str(directory)) == []
