"""``lattice policy``: looked at, replaced, and tested with an exit status for CI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import World

CASES = """
cases:
  - sandboxed reaches github-tools:80: allow
  - sandboxed reaches payroll:80: deny
  - sandboxed reaches service:payroll:80: deny
  - coordinator reaches preset:coordinator:7000: allow
  - auditor reaches payroll:80: allow
  - {from: isolated, to: "search.lattice:80", allow: ["search.lattice:80"], expect: allow}
"""
POLICY = "presets:\n  auditor:\n    egress: [service:payroll]\n"


@pytest.fixture
def lattice(world: World, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command as the workspace's admin."""
    environment = {
        **os.environ,
        "LATTICE_SERVER": world.fabric.url,
        "LATTICE_TOKEN": world.fabric.admin_token,
        "LATTICE_WORKSPACE": world.fabric.workspace,
    }

    def run(*words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lattice_sdk", *words],
            env=environment,
            cwd=tmp_path,
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_policy_test_tells_by_its_exit_status(
    lattice: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "cases.yaml").write_text(CASES)
    (tmp_path / "policy.yaml").write_text(POLICY)
    live = lattice("policy", "test", "cases.yaml")
    assert live.returncode == 1
    assert "FAILED auditor reaches payroll:80: allow: " in live.stdout
    assert "5 passed, 1 failed" in live.stdout
    proposed = lattice("policy", "test", "cases.yaml", "--policy", "policy.yaml")
    assert (proposed.returncode, proposed.stdout) == (0, "6 passed, 0 failed\n")
    try:
        assert lattice("policy", "set", "policy.yaml").returncode == 0
        assert lattice("policy", "test", "cases.yaml").returncode == 0
        shown = json.loads(lattice("policy", "get", "--output", "json").stdout)
        assert shown["presets"] == {"auditor": {"egress": ["service:payroll"], "ingress": []}}
    finally:
        assert lattice("policy", "set", "-", text="{}").returncode == 0
    detailed = lattice("policy", "test", "cases.yaml", "--output", "json")
    assert detailed.returncode == 1
    assert json.loads(detailed.stdout)["failed"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "cases: []",
        "case: []",
        "- a list",
        "cases: [sandboxed]",
        "cases: [{sandboxed can github-tools: allow}]",
        "cases: [{sandboxed reaches github-tools: allow}]",
        "{",
    ],
)
def test_a_file_that_holds_no_cases_is_told(
    lattice: Callable[..., subprocess.CompletedProcess[str]], text: str
) -> None:
    done = lattice("policy", "test", "-", text=text)
    assert done.returncode in (2, 3)
    assert "Traceback" not in done.stderr
    assert done.stderr
    assert not done.stdout


def test_a_case_that_is_misspelt_is_no_pass(
    lattice: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = lattice("policy", "test", "-", text="cases: [{sandboxed reaches nobody:80: deny}]")
    assert done.returncode == 1
    assert "no service, preset or agent nobody" in done.stdout
    done = lattice("policy", "test", "-", text="cases: [{sandboxed reaches search:80: maybe}]")
    assert done.returncode == 6
