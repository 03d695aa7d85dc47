import os
from pathlib import Path

import pytest

from lattice_engine import EngineMissing, engine_path


def test_the_engine_of_the_package_is_found() -> None:
    assert os.access(engine_path(), os.X_OK)


def test_named_engine_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "engine"
    binary.touch(mode=0o755)
    monkeypatch.setenv("LATTICE_ENGINE", str(binary))
    assert engine_path() == binary


def test_missing_engine_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATTICE_ENGINE", str(tmp_path / "nowhere"))
    with pytest.raises(EngineMissing, match="correct or unset") as missing:
        engine_path()
    assert missing.value.code == "engine_missing"


def test_engine_that_may_not_be_executed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "engine"
    binary.touch(mode=0o644)
    monkeypatch.setenv("LATTICE_ENGINE", str(binary))
    with pytest.raises(EngineMissing, match="chmod 755"):
        engine_path()
