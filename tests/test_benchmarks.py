"""The benchmark suite runs and tells what docs/benchmarks.md says. No figure is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.exec import named
from benchmarks.fabrics import ProcessEndedError, resident_mb
from benchmarks.report import Section

ROOT = Path(__file__).parent.parent
MEASURED = ("join", "leave", "tunnel", "control_plane", "footprint", "adapters")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the suite at the least size of each of its pieces."""
    directory = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "benchmarks", "--size", "tiny", "--output", str(directory)]
    done = subprocess.run(
        [*command, "--only", *MEASURED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_piece_of_the_suite_says_what_is_documented(results: Path) -> None:
    document: dict[str, Any] = json.loads((results / "results.json").read_text())
    assert {"processor", "cores", "memory_gib", "kernel", "revision"} < set(document["machine"])
    assert len(document["sections"]) == len(MEASURED)
    assert document["seconds"] == sum(section["seconds"] for section in document["sections"])
    for section in document["sections"]:
        assert set(section) == {"title", "figures", "curves", "remarks", "seconds", "failed"}
        assert not section["failed"]
        assert section["figures"]
        for figure in section["figures"]:
            assert isinstance(figure["value"], float)
            assert (figure["met"] is None) == (figure["target"] == "")
        for curve in section["curves"]:
            assert all(len(points) > 1 for points in curve["lines"].values())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tables_have_every_figure_and_the_reason_of_every_miss(results: Path) -> None:
    document = json.loads((results / "results.json").read_text())
    summary, _, everything = (results / "report.md").read_text().partition("## Everything")
    targets, rows = summary.splitlines(), everything.splitlines()
    for section in document["sections"]:
        for figure in section["figures"]:
            row = next(row for row in rows if row.startswith(f"| {figure['name']} |"))
            assert row.count("|") == 6
            assert ("**no**" in row) is (figure["met"] is False)
            aimed = [one for one in targets if one.startswith(f"| {figure['name']} |")]
            assert bool(aimed) is bool(figure["target"])
            if figure["met"] is False:
                assert figure["note"]
                assert aimed[0].endswith(f"| {figure['note']} |")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (
            "main_job",
            ["--rounds", "1", "--peers", "4", "--agents", "2", "--idle", "0.1"],
            {"import", "join_cold", "join_warm", "engine_memory", "live_peers"},
        ),
        (
            "exec",
            ["--rounds", "1"],
            {"bare", "exec", "exec_by_the_sdk", "agent_run", "start_over_the_bare_command_ms"},
        ),
        # `make bench` does run it, but not at the size that this module's suite has.
        (
            "langgraph_overhead",
            ["--steps", "2", "--rounds", "2"],
            {"machine", "steps", "rounds", "invoke"},
        ),
    ],
)
def test_what_make_bench_does_not_run_still_runs(
    name: str, options: list[str], says: set[str]
) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert says < set(json.loads(done.stdout))


def test_a_process_that_has_ended_is_told_from_one_that_uses_nothing() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessEndedError, match=str(process.pid)):
        resident_mb(process.pid)  # a zombie
    process.wait()
    for measure in (resident_mb, named):
        with pytest.raises(ProcessEndedError, match=str(process.pid)):
            measure(process.pid)
    assert resident_mb(os.getpid()) > 1
    assert named(os.getpid()).startswith("py")


def test_a_figure_may_be_off_to_either_side_by_so_much() -> None:
    section = Section("x")
    for change in (-5.0, 5.0, -5.1, 5.1):
        section.within("rate", [change], "%", 5, note="why")
    assert [one.met for one in section.figures] == [True, True, False, False]
    assert [one.note for one in section.figures] == ["", "", "why", "why"]
    assert {one.target for one in section.figures} == {"± 5 %"}


def test_a_target_that_is_missed_keeps_its_reason_and_one_that_is_met_does_not() -> None:
    section = Section("x")
    assert section.at_most("a", [1.0, 9.0, 2.0], "ms", 1.5, note="why").note == "why"
    assert section.at_most("b", [1.0, 9.0, 1.4], "ms", 1.5, note="why").note == ""
    assert section.at_least("c", 3.0, "ms", 3.5).met is False
    assert section.at_least("d", 4.0, "ms", 3.5).met is True
    assert [one.met for one in section.figures] == [False, True, False, True]
