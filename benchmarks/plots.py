"""Draws the curves of a ``results.json`` as SVG; in an environment of its own, which has pygal.

.venvs/bench/bin/python benchmarks/plots.py RESULTS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pygal


def main(results: Path) -> None:
    """Write one file for each curve; print their names."""
    for section in json.loads(results.read_text())["sections"]:
        for curve in section["curves"]:
            chart = pygal.XY(
                title=curve["name"],
                x_title=curve["x_label"],
                y_title=curve["y_label"],
                logarithmic=False,
                xrange=None,
                js=(),
            )
            chart.x_value_formatter = lambda value: f"{10**value:,.0f}"
            for name, points in curve["lines"].items():
                chart.add(name, [(_log(x), y) for x, y in points])
            path = results.parent / f"{curve['name'].lower().replace(' ', '-')}.svg"
            chart.render_to_file(str(path))
            print(path.name)


def _log(value: float) -> float:
    from math import log10

    return log10(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
