"""What a benchmark found: figures with their spread and target, as JSON, a table and curves."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BUDGET = {"full": 900, "quick": 120}  # seconds, on two cores that do nothing else
BUSY = 10.0  # per cent of the machine's time that may go elsewhere before it is said


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: what was measured.
        value: the median of the rounds, or what is said in ``name``.
        unit: of ``value`` and of the spread.
        low: the least of the rounds.
        high: the greatest of the rounds.
        target: what was to be reached, in words (``"<= 60 ms"``).
        met: whether it was; ``None`` without a target.
        note: the reason where a target is missed, and what it would take.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: str = ""
    met: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """Figures over a growing number, for a plot."""

    name: str
    x_label: str
    y_label: str
    lines: dict[str, list[tuple[float, float]]]


@dataclass
class Section:
    """One benchmark's findings."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    seconds: float = 0.0
    failed: bool = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Section:
        """What :func:`dataclasses.asdict` has made of one, also through JSON."""
        figures = [Figure(**one) for one in data["figures"]]
        curves = [Curve(**one) for one in data["curves"]]
        return cls(**{**data, "figures": figures, "curves": curves})

    def curve(self, name: str, x_label: str, y_label: str) -> Curve:
        """The curve of that name, a new one where there is none."""
        for one in self.curves:
            if one.name == name:
                return one
        self.curves.append(Curve(name, x_label, y_label, {}))
        return self.curves[-1]

    def add(self, name: str, values: Sequence[float] | float, unit: str, **more: Any) -> Figure:
        """Add a figure: one value, or rounds of which it is the median."""
        rounds = [float(values)] if isinstance(values, (int, float)) else sorted(values)
        spread = (rounds[0], rounds[-1]) if len(rounds) > 1 else (None, None)
        figure = Figure(name, statistics.median(rounds), unit, *spread, **more)
        self.figures.append(figure)
        return figure

    def at_most(
        self, name: str, values: Sequence[float] | float, unit: str, limit: float, **more: Any
    ) -> Figure:
        """Add a figure whose value shall be no more than ``limit``."""
        return self._aimed(name, values, unit, f"≤ {limit:g} {unit}", limit, 1, more)

    def at_least(
        self, name: str, values: Sequence[float] | float, unit: str, limit: float, **more: Any
    ) -> Figure:
        """Add a figure whose value shall be no less than ``limit``."""
        return self._aimed(name, values, unit, f"≥ {limit:g} {unit}", limit, -1, more)

    def within(
        self, name: str, values: Sequence[float] | float, unit: str, limit: float, **more: Any
    ) -> Figure:
        """Add a figure whose value shall be no further than ``limit`` from zero."""
        rounds = [float(values)] if isinstance(values, (int, float)) else list(values)
        met = abs(statistics.median(rounds)) <= limit
        return self._judged(name, rounds, unit, f"± {limit:g} {unit}", met, more)

    def _aimed(
        self,
        name: str,
        values: Sequence[float] | float,
        unit: str,
        target: str,
        limit: float,
        sign: int,
        more: dict[str, Any],
    ) -> Figure:
        rounds = [float(values)] if isinstance(values, (int, float)) else list(values)
        met = sign * statistics.median(rounds) <= sign * limit
        return self._judged(name, rounds, unit, target, met, more)

    def _judged(
        self,
        name: str,
        rounds: Sequence[float],
        unit: str,
        target: str,
        met: bool,
        more: dict[str, Any],
    ) -> Figure:
        if met:
            more.pop("note", None)
        return self.add(name, rounds, unit, target=target.strip(), met=met, **more)


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that ``percent`` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


def summary(values: list[float], unit: str = "ms") -> dict[str, float]:
    """Median, 99th percentile and spread of measured seconds, in milliseconds."""
    scaled = sorted(value * 1000 for value in values)
    return {
        f"p50_{unit}": round(statistics.median(scaled), 1),
        f"p99_{unit}": round(scaled[min(len(scaled) - 1, round(len(scaled) * 0.99))], 1),
        f"min_{unit}": round(scaled[0], 1),
        f"max_{unit}": round(scaled[-1], 1),
        "rounds": len(scaled),
    }


def machine() -> dict[str, Any]:
    """The machine that the figures are of."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "processor": model or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "revision": revision,
        "user": "root" if os.geteuid() == 0 else "ordinary user",
        "busy_before_percent": _busy(),
    }


def _busy() -> float:
    """How much of the processors others take, while this process waits for a second."""

    def ticks() -> tuple[int, int]:
        values = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(values), values[3] + values[4]

    before = ticks()
    time.sleep(1)
    after = ticks()
    return round(100 * (1 - (after[1] - before[1]) / max(1, after[0] - before[0])), 1)


def write(directory: Path, sections: Sequence[Section], described: dict[str, Any]) -> Path:
    """Write ``results.json``, ``report.md`` and the plots; the report's path."""
    directory.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": described,
        "seconds": sum(section.seconds for section in sections),
        "sections": [asdict(section) for section in sections],
    }
    results = directory / "results.json"
    results.write_text(json.dumps(document, indent=2) + "\n")
    report = directory / "report.md"
    report.write_text(_markdown(sections, described, _plots(results)))
    return report


def _plots(results: Path) -> list[str]:
    """The plots' names; none without the environment that draws them (`make bench` makes it)."""
    python = ROOT / ".venvs" / "bench" / "bin" / "python"
    if not python.exists():
        return []
    command = [str(python), str(ROOT / "benchmarks" / "plots.py"), str(results)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


def _markdown(sections: Sequence[Section], described: dict[str, Any], plots: Sequence[str]) -> str:
    lines = ["# Benchmarks", "", ", ".join(f"{name}: {described[name]}" for name in described), ""]
    if described.get("busy_before_percent", 0) > BUSY:
        lines += ["**Other work ran meanwhile: trust ratios within one row group alone.**", ""]
    lines += [_took(sections, described.get("size", "")), ""]
    lines += _summary([one for section in sections for one in section.figures if one.target])
    lines += ["| | value | spread | target | met |", "| --- | ---: | --- | --- | --- |"]
    for section in sections:
        lines.append(f"| **{section.title}** ({section.seconds:.0f} s) | | | | |")
        for one in section.figures:
            spread = "" if one.low is None else f"{one.low:.4g} … {one.high:.4g}"
            lines.append(
                f"| {one.name} | {_value(one)} | {spread} | {one.target} | {_MET[one.met]} |"
            )
    for curve in (one for section in sections for one in section.curves):
        lines += _table(curve)
    remarks = [remark for section in sections for remark in section.remarks]
    if remarks:
        lines += ["", *(f"- {remark}" for remark in remarks)]
    lines += ["", *(f"![{plot}]({plot})" for plot in plots)]
    return "\n".join(lines).rstrip() + "\n"


def _took(sections: Sequence[Section], size: str) -> str:
    """How long all of it took, of what it may, and each section."""
    of = f" of at most {BUDGET[size]}" if size in BUDGET else ""
    parts = ", ".join(
        f"{section.title.partition(':')[0].lower()} {section.seconds:.0f} s" for section in sections
    )
    return f"It took {sum(section.seconds for section in sections):.0f} s{of}: {parts}."


def _table(curve: Curve) -> list[str]:
    """A curve's points, a column for each place."""
    places = sorted({x for points in curve.lines.values() for x, _ in points})
    head = " | ".join(f"{place:,.0f}" for place in places)
    lines = ["", f"**{curve.name}**, {curve.y_label}", "", f"| {curve.x_label} | {head} |"]
    lines.append(f"| --- |{' ---: |' * len(places)}")
    for name, points in curve.lines.items():
        values = dict(points)
        cells = (f"{values[place]:.4g}" if place in values else "" for place in places)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


_MET = {None: "", True: "yes", False: "**no**"}


def _value(figure: Figure) -> str:
    return f"{figure.value:.4g} {figure.unit}".strip()


def _summary(aimed: Sequence[Figure]) -> list[str]:
    """The targets alone, and where one is missed, why and what it would take."""
    if not aimed:
        return []
    lines = ["## Targets", "", "| | value | target | met | if not: why, and what it would take |"]
    lines.append("| --- | ---: | --- | --- | --- |")
    for one in aimed:
        row = f"| {one.name.strip()} | {_value(one)} | {one.target} | {_MET[one.met]} |"
        lines.append(f"{row} {one.note} |")
    return [*lines, "", "## Everything", ""]
