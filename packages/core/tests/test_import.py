"""``import lattice_sdk`` is cheap: what is heavy is imported when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("httpx", "pydantic", "cryptography", "pluggy", "typer", "rich", "anyio", "pytest")


def loaded_by(code: str) -> set[str]:
    """Heavy modules that are loaded after this code, in an interpreter of its own."""
    program = f"import sys\n{code}\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(eval(done.stdout))


@pytest.mark.parametrize("code", ["import lattice_sdk", "from lattice_sdk import LatticeError"])
def test_import_loads_nothing_heavy(code: str) -> None:
    assert loaded_by(code) == set()


def test_the_probe_sees_what_is_loaded() -> None:
    assert "httpx" in loaded_by("import httpx")


def test_no_framework_is_imported_by_using_the_agent() -> None:
    code = (
        "from lattice_sdk import LatticeAgent; LatticeAgent(server='http://127.0.0.1:9', token='x')"
    )
    assert "pytest" not in loaded_by(code)
