"""What a sandbox must not see is below one directory of the user's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lattice_engine import EngineProcess, private_directory


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for temporary files with a path that leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="lp-") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)


@pytest.fixture
def shared(temporary: Path) -> Path:
    """The directory of all of this user's."""
    return temporary / f"lattice-{os.geteuid()}"


def test_all_are_below_one_and_it_goes_with_the_last(shared: Path) -> None:
    with private_directory("dev-") as name:
        with EngineProcess.start_netstack() as engine:
            assert engine.control.parent.parent == shared
            assert Path(name).parent == shared
            assert shared.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in shared.iterdir()] == [Path(name).name]
    assert not shared.exists()
    with EngineProcess.start_netstack():
        assert shared.exists()
    assert not shared.exists()


def test_one_that_is_open_to_others_is_closed_to_them(shared: Path) -> None:
    shared.mkdir()
    shared.chmod(0o777)
    with private_directory("dev-"):
        assert shared.stat().st_mode & 0o777 == 0o700
    shared.mkdir()
    shared.chmod(0o777)
    with EngineProcess.start_netstack():
        assert shared.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["file", "link", "another user's"])
def test_name_that_is_taken_is_not_used(shared: Path, temporary: Path, kind: str) -> None:
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    if kind == "file":
        shared.touch()
    elif kind == "link":
        shared.symlink_to(elsewhere)
    elif os.geteuid() != 0:
        pytest.skip("only root can make another user's directory")
    else:
        shared.mkdir()
        os.chown(shared, 65534, 65534)
    with private_directory("dev-") as name, EngineProcess.start_netstack() as engine:
        for path in (Path(name), engine.control.parent):
            assert path.parent.name.startswith(f"{shared.name}-")
            assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not list(elsewhere.iterdir())
    assert {path.name for path in temporary.iterdir()} == {"elsewhere", shared.name}


def test_many_come_and_go_at_once(shared: Path) -> None:
    def come_and_go(_: int) -> None:
        for _ in range(200):
            with private_directory("dev-") as name:
                assert Path(name).is_dir()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(8)))
    assert not shared.exists()
