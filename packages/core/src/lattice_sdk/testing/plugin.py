"""The suite's pytest plugin: the world, what is collected, and the report."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from lattice_sdk.testing.adapter import Adapter
from lattice_sdk.testing.world import World, start_world

__all__ = ["lattice_world"]

# The suite's assertions are not in a test file; without this they would not say what they saw.
pytest.register_assert_rewrite(
    *(f"lattice_sdk.testing.{name}" for name in ("base", "contract", "exits"))
)

INVARIANTS = range(1, 9)
_RESULTS: pytest.StashKey[defaultdict[str, defaultdict[int, list[bool]]]] = pytest.StashKey()
_ABSENT: pytest.StashKey[defaultdict[str, set[str]]] = pytest.StashKey()


@pytest.fixture(scope="session")
def lattice_world() -> Iterator[World]:
    """A control plane, a gateway and three tool services, for the session."""
    with (
        tempfile.TemporaryDirectory(prefix="lattice-world-") as name,
        start_world(Path(name)) as world,
    ):
        yield world


def pytest_configure(config: pytest.Config) -> None:
    """Declare the suite's markers."""
    config.addinivalue_line("markers", "lattice_invariant(number): of the adapter contract")
    config.addinivalue_line("markers", "lattice_capability(name): that the adapter must declare")
    config.addinivalue_line("markers", "lattice_in_process: of the process that runs the adapter")
    results: defaultdict[str, defaultdict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    absent: defaultdict[str, set[str]] = defaultdict(set)
    config.stash[_RESULTS], config.stash[_ABSENT] = results, absent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what an adapter does not declare."""
    kept, left_out = [], []
    for item in items:
        adapter = _adapter_of(item)
        wanted = {str(marker.args[0]) for marker in item.iter_markers("lattice_capability")}
        missing = wanted - {str(one) for one in adapter.capabilities} if adapter else set()
        if adapter and not adapter.in_process and item.get_closest_marker("lattice_in_process"):
            missing |= {"in_process"}
        if adapter and missing:
            config.stash[_ABSENT][adapter.name] |= missing
            left_out.append(item)
        else:
            kept.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Note which invariant held."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    adapter = _adapter_of(item)
    if adapter is None or (report.when != "call" and report.passed):
        return
    for marker in item.iter_markers("lattice_invariant"):
        item.config.stash[_RESULTS][adapter.name][marker.args[0]].append(report.passed)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Name what each adapter passed."""
    results = config.stash[_RESULTS]
    if not results:
        return
    terminalreporter.section("adapter contract")
    for name in sorted(results):
        held = [number for number in INVARIANTS if results[name][number]]
        broken = [number for number in held if not all(results[name][number])]
        count = sum(len(tests) for tests in results[name].values())
        line = f"{name}: invariants {', '.join(map(str, held))} in {count} tests"
        if absent := config.stash[_ABSENT][name]:
            line += f"; does not offer {', '.join(sorted(absent))}"
        line += f"; BROKEN: {', '.join(map(str, broken))}" if broken else "; all hold"
        terminalreporter.write_line(line)


def _adapter_of(item: pytest.Item) -> type[Adapter] | None:
    return getattr(getattr(item, "cls", None), "adapter", None)
