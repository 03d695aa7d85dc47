"""The real engine: its life, its end with its parent, its errors."""

import base64
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from lattice_engine import EngineError, EngineProcess


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(what: str, condition, timeout: float = 15) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.fixture
def engine():
    with EngineProcess.start_netstack() as process:
        yield process


def test_it_serves_and_closes_without_a_trace(engine: EngineProcess) -> None:
    assert engine.client.status()["mode"] == "netstack"
    assert engine.client.list_tunnels() == []
    assert engine.alive()
    engine.close()
    assert not engine.alive()
    assert not alive(engine.pid)
    assert not engine.control.parent.exists()
    engine.close()


def test_refusals_carry_code_detail_and_status(engine: EngineProcess) -> None:
    with pytest.raises(EngineError) as refusal:
        engine.client.get_tunnel("peer/../nobody?x")
    assert refusal.value.status == 404
    assert refusal.value.code == "tunnel_not_found"
    assert refusal.value.detail


def test_a_dead_engine_is_an_error_that_says_so(engine: EngineProcess) -> None:
    os.kill(engine.pid, signal.SIGKILL)
    wait_until("the engine to end", lambda: not engine.alive())
    with pytest.raises(EngineError, match="signal SIGKILL") as failure:
        engine.client.status()
    assert failure.value.code == "engine_unreachable"
    engine.close()
    assert not engine.control.parent.exists()


def test_closed_client_says_so(engine: EngineProcess) -> None:
    engine.client.close()
    with pytest.raises(EngineError) as failure:
        engine.client.status()
    assert failure.value.code == "engine_closed"


def test_calls_of_many_threads(engine: EngineProcess) -> None:
    answers: list[dict[str, object]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(engine.client.status())) for _ in range(32)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer["pid"] for answer in answers} == {engine.pid}
    assert len(answers) == 32


def test_attached_engine_can_be_ended(engine: EngineProcess) -> None:
    other = EngineProcess.attach(engine.control)
    assert (other.pid, other.mode) == (engine.pid, "netstack")
    assert other.alive()
    other.close()
    assert not alive(engine.pid)


def test_nobody_to_attach_to(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as failure:
        EngineProcess.attach(tmp_path / "control.sock")
    assert failure.value.code == "engine_unreachable"


def test_relative_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with EngineProcess.start_netstack(runtime_dir=Path("run")) as engine:
        assert engine.control == tmp_path / "run" / "control.sock"
        assert engine.control.stat().st_mode & 0o777 == 0o600
        assert engine.control.parent.stat().st_mode & 0o777 == 0o700


def test_log_goes_where_it_is_wanted(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    with EngineProcess.start_netstack(log=log):
        assert log.exists()


def test_the_engine_ends_with_a_killed_parent() -> None:
    script = textwrap.dedent("""
        import subprocess, time
        from lattice_engine import EngineProcess
        engine = EngineProcess.start_netstack()
        bystander = subprocess.Popen(["sleep", "60"], close_fds=False)
        print(engine.pid, engine.control, bystander.pid, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid, control, bystander = parent.stdout.readline().split()
    try:
        assert alive(int(pid))
        parent.kill()
        parent.wait()
        wait_until("the engine to end", lambda: not alive(int(pid)))
        wait_until("its directory to go", lambda: not Path(control).parent.exists())
        assert alive(int(bystander)), "the engine had to end although a sibling lives on"
    finally:
        os.kill(int(bystander), signal.SIGKILL)
        parent.stdout.close()


def test_the_engine_ends_with_its_parent_although_a_forked_child_lives() -> None:
    script = textwrap.dedent("""
        import os, time
        from lattice_engine import EngineProcess
        engine = EngineProcess.start_netstack()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(engine.pid, child, flush=True)
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid, child = map(int, parent.stdout.readline().split())
    try:
        parent.kill()
        parent.wait()
        wait_until("the engine to end", lambda: not alive(pid))
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_forked_child_owns_nothing(engine: EngineProcess) -> None:
    engine.client.status()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            engine.client.status()
        except EngineError as error:
            status = 0 if error.code == "engine_closed" else 2
        engine.close()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert engine.client.status()["pid"] == engine.pid


def test_a_gateway_in_its_own_namespace_ends_with_both_of_its_processes(tmp_path: Path) -> None:
    key = tmp_path / "private.key"
    key.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
    gateway = EngineProcess.start_gateway(
        private_key_file=key,
        listen_port=0,
        address="10.96.0.1/16",
        namespace="own",
        runtime_dir=tmp_path / "run",
        log=tmp_path / "engine.log",
    )
    try:
        status = gateway.client.status()
        assert (status["mode"], status["namespace"]) == ("gateway", "own")
        assert gateway.client.peers() == []
        parent = int(Path(f"/proc/{gateway.pid}/stat").read_text().rpartition(")")[2].split()[1])
        adopted = EngineProcess.attach(gateway.control)
        adopted.close()
        assert not adopted.alive()
        assert not gateway.alive()
        assert not alive(gateway.pid)
        assert not alive(parent)
        assert not gateway.control.exists()
    finally:
        gateway.close()


def test_closing_the_client_ends_a_reader_of_events(tmp_path: Path) -> None:
    key = tmp_path / "private.key"
    key.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
    with EngineProcess.start_gateway(
        private_key_file=key, listen_port=0, address="10.96.0.1/16", namespace="own"
    ) as gateway:
        events: list[dict[str, object]] = []
        ended = threading.Event()

        def read() -> None:
            events.extend(gateway.client.events())
            ended.set()

        threading.Thread(target=read, daemon=True).start()
        wait_until("the stream", lambda: gateway.client._streams)
        gateway.client.close()
        assert ended.wait(10)
