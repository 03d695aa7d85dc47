"""Starts that fail: with programs in the engine's place that fail in the ways an engine can."""

import gc
import os
import pickle
from pathlib import Path

import pytest

from lattice_engine import EngineError, EngineProcess


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Puts a shell script in the engine's place."""

    def put(script: str) -> Path:
        path = tmp_path / "lattice-engine"
        path.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("LATTICE_ENGINE", str(path))
        return tmp_path / "pid"

    return put


def start_and_fail(timeout: float = 10) -> EngineError:
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(EngineError) as failure:
        EngineProcess.start_netstack(timeout=timeout)
    assert set(os.listdir("/proc/self/fd")) == before
    return failure.value


def test_refused_start_has_the_engines_code_reason_and_log(program) -> None:
    program(
        'echo \'{"level":"ERROR","msg":"no such luck"}\' >&2\n'
        'echo \'{"ready": false, "code": "listen_failed", "error": "port 1 is taken: choose 2"}\'\n'
        "exit 1"
    )
    failure = start_and_fail()
    assert failure.code == "listen_failed"
    assert "port 1 is taken: choose 2" in failure.detail
    assert "no such luck" in failure.detail


def test_start_that_ends_without_a_word_shows_status_and_log(program) -> None:
    program("echo 'panic: nil' >&2\nexit 3")
    failure = start_and_fail()
    assert failure.code == "engine_start_failed"
    assert "exit status 3" in failure.detail
    assert "panic: nil" in failure.detail


def test_engine_that_is_never_ready_is_ended(program) -> None:
    pid_file = program("exec sleep 60")
    failure = start_and_fail(timeout=3)
    assert failure.code == "engine_start_timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_program_of_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "engine"
    binary.write_bytes(b"\x7fELF not for here")
    binary.chmod(0o755)
    monkeypatch.setenv("LATTICE_ENGINE", str(binary))
    assert "built for this machine" in start_and_fail().detail


def test_the_engine_sees_no_secret_of_the_environment(
    program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICE_TOKEN", "lt-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    program("tr '\\0' '\\n' < /proc/self/environ >&2\nexit 1")
    assert "secret" not in start_and_fail().detail


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(EngineError("probe_timeout", "no answer", 504)))
    assert (error.code, error.detail, error.status) == ("probe_timeout", "no answer", 504)
