"""For all tests of the workspace."""

import os
import signal
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any

import pytest

from lattice_autogen._compat import GENERATIONS

# A shell starts background jobs with SIGINT ignored, and nohup anything with SIGHUP, which children
# inherit and Python then leaves so. What is tested here is what happens when nobody has done that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest_plugins = ["lattice_sdk.testing.plugin"]

# How long an example takes on a busy machine says nothing. AutoGen's environments do without it.
if find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "lattice", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("lattice")

# Each generation of AutoGen has an environment of its own, in which `make test` runs its tests.
collect_ignore_glob = [
    f"*/test_autogen_{generation}*.py"
    for generation, module in GENERATIONS.items()
    if find_spec(module) is None
]

# Set where everything that tests need is installed (.ci/run): a test that is skipped has failed.
NO_SKIPS = bool(os.environ.get("LATTICE_TEST_NO_SKIPS"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """See NO_SKIPS."""
    return _not_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """See NO_SKIPS."""
    return _not_skipped((yield))


def _not_skipped(report: Any) -> Any:
    if NO_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"may not be skipped here: {report.longrepr}"
    return report
