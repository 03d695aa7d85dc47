"""What a benchmark found: figures with their spread and target, as JSON, a table and curves."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


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
        if met:
            more.pop("note", None)
        return self.add(name, rounds, unit, target=target.strip(), met=met, **more)


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that ``percent`` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


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
        "load_before": round(os.getloadavg()[0], 2),
    }


def write(directory: Path, sections: Sequence[Section], described: dict[str, Any]) -> Path:
    """Write ``results.json``, ``report.md`` and the plots; the report's path."""
    directory.mkdir(parents=True, exist_ok=True)
    document = {"machine": described, "sections": [asdict(section) for section in sections]}
    (directory / "results.json").write_text(json.dumps(document, indent=2) + "\n")
    plots = [_plot(directory, curve) for section in sections for curve in section.curves]
    report = directory / "report.md"
    report.write_text(_markdown(sections, described, plots))
    return report


def _markdown(sections: Sequence[Section], described: dict[str, Any], plots: Sequence[str]) -> str:
    lines = ["# Benchmarks", "", ", ".join(f"{name}: {described[name]}" for name in described), ""]
    lines += ["| | value | spread | target | met |", "| --- | ---: | --- | --- | --- |"]
    for section in sections:
        lines.append(f"| **{section.title}** ({section.seconds:.0f} s) | | | | |")
        for one in section.figures:
            spread = "" if one.low is None else f"{one.low:.4g} … {one.high:.4g}"
            met = {None: "", True: "yes", False: "**no**"}[one.met]
            lines.append(
                f"| {one.name} | {one.value:.4g} {one.unit} | {spread} | {one.target} | {met} |"
            )
    missed = [one for section in sections for one in section.figures if one.note]
    if missed:
        lines += ["", "Missed, and why:", ""]
        lines += [f"- {one.name}: {one.note}" for one in missed]
    remarks = [remark for section in sections for remark in section.remarks]
    if remarks:
        lines += ["", *(f"- {remark}" for remark in remarks)]
    lines += ["", *(f"![{plot}]({plot})" for plot in plots)]
    return "\n".join(lines).rstrip() + "\n"


def _plot(directory: Path, curve: Curve) -> str:
    import pygal

    chart = pygal.XY(
        x_title=curve.x_label, y_title=curve.y_label, title=curve.name, disable_xml_declaration=True
    )
    for name, points in curve.lines.items():
        chart.add(name, points)
    path = directory / f"{curve.name.lower().replace(' ', '-')}.svg"
    chart.render_to_file(str(path))
    return path.name
