"""Runs the suite: ``python -m benchmarks [--size full|quick|tiny] [--only NAME…]``.

Writes ``results.json``, ``report.md`` and the plots of its curves, by default into
``benchmarks/results``. A benchmark that fails is named in the report and by the exit code; the
others are measured all the same.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from benchmarks import report

NAMES = ("join", "leave", "tunnel", "control_plane", "footprint", "adapters")
RESULTS = Path(__file__).parent / "results"


def one(name: str, size: str) -> report.Section:
    """A benchmark's findings, or why there are none."""
    started = time.perf_counter()
    try:
        module = importlib.import_module(f"benchmarks.{name}")
        section: report.Section = module.measure(size)
    except Exception:
        traceback.print_exc()
        section = report.Section(name, failed=True)
        section.remarks.append(f"{name} failed: {sys.exc_info()[1]!r}")
    section.seconds = time.perf_counter() - started
    return section


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", choices=("full", "quick", "tiny"), default="full")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    described = report.machine() | {"size": options.size}
    sections: list[report.Section] = []
    for name in options.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        sections.append(one(name, options.size))
        path = report.write(options.output, sections, described)
    print(path.read_text())
    return 1 if any(section.failed for section in sections) else 0


if __name__ == "__main__":
    sys.exit(main())
