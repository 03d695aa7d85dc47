"""What killed engines leave is removed by the next one, and nothing else is."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lattice_engine import EngineProcess
from lattice_engine._sweep import AGE, sweep


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory whose name leaves room for sockets (unix(7))."""
    with tempfile.TemporaryDirectory(prefix="sweep-", dir="/tmp") as name:
        yield Path(name)


def aged(path: Path) -> Path:
    """A directory that was not touched for longer than engines take to start."""
    path.mkdir(exist_ok=True)
    long_ago = path.stat().st_mtime - AGE - 5
    os.utime(path, (long_ago, long_ago))
    return path


def test_only_what_an_ended_engine_left_is_removed(tmp_path: Path) -> None:
    shared = tmp_path / f"lattice-{os.geteuid()}"
    left = shared / "engine-1"
    left.mkdir(parents=True)
    (left / "programs").mkdir()
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(str(left / "control.sock"))
    aged(left)
    empty = aged(shared / "engine-2")
    young = shared / "engine-3"
    young.mkdir()
    other = aged(shared / "dev-4")
    (shared / "engine-5").symlink_to(other)
    running = shared / "engine-6"
    running.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(running / "control.sock"))
        listening.listen()
        aged(running)
        assert set(sweep(str(tmp_path))) == {str(left), str(empty)}
    assert {path.name for path in shared.iterdir()} == {"engine-3", "dev-4", "engine-5", "engine-6"}
    assert young.exists()


def test_what_all_share_goes_with_the_last_one(tmp_path: Path) -> None:
    shared = tmp_path / f"lattice-{os.geteuid()}"
    shared.mkdir()
    aged(shared / "engine-1")
    assert len(sweep(str(tmp_path))) == 1
    assert not shared.exists()


def test_directory_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert sweep(str(tmp_path / "nothing")) == []


def test_killed_engines_directory_goes_with_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with EngineProcess.start_netstack() as engine:
        (engine.control.parent / "programs").mkdir()
        os.kill(engine.pid, signal.SIGKILL)
    assert not list(tmp_path.iterdir())
