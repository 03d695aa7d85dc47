"""``import lattice_sdk`` is cheap: what is heavy is imported when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("httpx", "pydantic", "cryptography", "pluggy", "typer", "rich", "anyio", "pytest")
# Of adapters and of the server; all are installed where this is tested.
FOREIGN = ("langgraph", "langchain_core", "lattice_langgraph", "fastapi", "lattice_server")


def loaded_by(code: str) -> set[str]:
    """Which of these are loaded after this code, in an interpreter of its own."""
    watched = (*HEAVY, *FOREIGN)
    program = f"import sys\n{code}\nprint([m for m in {watched!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(eval(done.stdout))


@pytest.mark.parametrize("code", ["import lattice_sdk", "from lattice_sdk import LatticeError"])
def test_import_loads_nothing_heavy(code: str) -> None:
    assert loaded_by(code) == set()


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_by("import httpx, langgraph, fastapi") >= {"httpx", "langgraph", "fastapi"}


def test_no_framework_is_imported_by_using_the_agent() -> None:
    code = (
        "from lattice_sdk import LatticeAgent; LatticeAgent(server='http://127.0.0.1:9', token='x')"
    )
    assert not loaded_by(code) & {"pytest", *FOREIGN}
