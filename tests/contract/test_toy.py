"""The toy of the documentation holds the contract; each broken one is caught by its invariant."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lattice_sdk.testing.contract import AdapterContract
from support.broken import BROKEN, NOT_WITHIN
from support.toy import TestPipeline, Toy

ROOT = Path(__file__).parent.parent.parent


__all__ = ["TestPipeline"]  # what the page has for pytest to collect

# Seconds for what is waited for in vain, as in most of the broken ones.
IN_VAIN = 10.0


@dataclass(frozen=True)
class Report:
    """What pytest says of the tests that have to catch the broken adapters."""

    text: str
    failures: dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    directory = tmp_path_factory.mktemp("broken")
    tests = [
        "import pytest",
        "from lattice_sdk.testing import base, contract",
        "from support import broken",
        "class Contract(contract.AdapterContract):",
        "    patience = base.PATIENCE",
        "    @pytest.fixture(autouse=True)",
        "    def _cleaned(self, _watched, monkeypatch):",
        "        monkeypatch.setattr(base, 'PATIENCE', self.patience)",
        "        yield",
        "        broken.clean_up()",
    ]
    for kind, caught in BROKEN.items():
        tests += [f"class Test{kind.__name__}(Contract):", f"    adapter = broken.{kind.__name__}"]
        if any(told.startswith(NOT_WITHIN) for told in caught.values()):
            tests.append(f"    patience = {IN_VAIN}")
    (directory / "test_broken.py").write_text("\n".join(tests))
    (directory / "conftest.py").write_text('pytest_plugins = ["lattice_sdk.testing.plugin"]\n')
    (directory / "pytest.ini").write_text("[pytest]\n")
    chosen = [
        f"test_broken.py::Test{kind.__name__}::{test}" for kind in BROKEN for test in BROKEN[kind]
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=it.xml", *chosen],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    failures = {
        (case.attrib["classname"].partition(".Test")[2], case.attrib["name"]): str(failure.text)
        for case in ElementTree.parse(directory / "it.xml").iter("testcase")
        for failure in case.iter("failure")
    }
    return Report(done.stdout + done.stderr, failures)


@pytest.mark.timeout(960)
@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_broken_adapter_is_caught(report: Report, kind: type[Toy]) -> None:
    for test, told in BROKEN[kind].items():
        failure = report.failures.get((kind.__name__, test))
        assert failure is not None, f"{test} did not fail\n{report.text}"
        assert re.search(told, failure), failure
    number = kind.name.split()[1]
    line = rf"^{re.escape(kind.name)}: invariants {number} in \d tests?.*; BROKEN: {number}$"
    assert re.search(line, report.text, re.MULTILINE), report.text


def test_each_invariant_is_broken_by_somebody() -> None:
    assert {kind.name.split()[1] for kind in BROKEN} == set("12345678")


def test_each_test_of_the_contract_is_failed_by_somebody() -> None:
    tests = {name for name in dir(AdapterContract) if name.startswith("test_")}
    assert tests == {test.partition("[")[0] for caught in BROKEN.values() for test in caught}
