"""The toy of the documentation holds the contract; each broken one is caught by its invariant."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lattice_sdk.testing.contract import AdapterContract
from support.toy import BROKEN, Toy

ROOT = Path(__file__).parent.parent.parent


class TestToy(AdapterContract):
    adapter = Toy


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """What the suite says of each broken adapter: the numbers of the invariants that it breaks."""
    directory = tmp_path_factory.mktemp("broken")
    tests = ["from lattice_sdk.testing.contract import AdapterContract", "from support import toy"]
    for number, kind in BROKEN.items():
        tests += [
            f"class TestBroken{number}(AdapterContract):",
            f"    adapter = toy.{kind.__name__}",
        ]
    (directory / "test_broken.py").write_text("\n".join(tests))
    (directory / "conftest.py").write_text('pytest_plugins = ["lattice_sdk.testing.plugin"]\n')
    (directory / "pytest.ini").write_text("[pytest]\n")
    # Of each only its own invariant, so that this takes seconds.
    chosen = " or ".join(f"(TestBroken{number} and {CAUGHT_BY[number]})" for number in BROKEN)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            chosen,
            str(directory),
        ],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = re.findall(
        r"^broken (\d): .*?(?:BROKEN: ([\d, ]+)|all hold)$", done.stdout, re.MULTILINE
    )
    assert found, done.stdout + done.stderr
    return {int(number): broken for number, broken in found}


# The test of each invariant that has to fail.
CAUGHT_BY = {
    1: "test_granted_service_sees_the_enrolled_address",
    2: "test_what_is_not_granted_is_refused_at_once",
    3: "test_return_leaves_nothing",
    4: "test_work_longer_than_its_ttl_keeps_its_identity",
    5: "test_failed_enrollment_says_what_to_do",
    6: "test_two_agents_are_two_identities",
    7: "test_nothing_secret_is_printed",
    8: "test_result_is_the_frameworks_own",
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", BROKEN)
def test_broken_adapter_is_caught(reports: dict[int, str], number: int) -> None:
    assert reports[number] == str(number)
