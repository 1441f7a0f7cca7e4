"""A chart is described once, here; svg.py draws it for the page, png.py for a slide or a paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

POINTS = 150  # on a line; more steps than that are averaged in groups
MARKED = 16  # lines of up to this many points show them
# also in page.css, with dark ones
COLOURS = (
    "#0a62c9",
    "#c2410c",
    "#15803d",
    "#7c3aed",
    "#be185d",
    "#0f766e",
    "#8a6100",
    "#566070",
)


@dataclass
class Line:
    run: int | None  # decides the colour; None: grey, what the line is compared with
    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None  # lowest and highest of the steps behind each point
    high: Sequence[float] | None = None
    area: bool = False  # filled down to 0, in steps
    ends: bool = False  # of two points: from an open circle to a full one


class Band(NamedTuple):
    begin: float
    end: float
    label: str


Ticks = list[tuple[float, str]]


@dataclass
class Chart:
    name: str  # of the PNG
    title: str
    lines: list[Line]
    note: str = ""
    x_label: str = "step"
    log: bool = False
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    x_ticks: Ticks | None = None
    y_ticks: Ticks | None = None
    bands: list[Band] = field(default_factory=list)
    # float64 in [0, 1], [rows, columns], the first row at the bottom: fills the chart
    heat: np.ndarray | None = None
    run: int | None = None  # where it is of one run only


def grouped(run: int, label: str, x: np.ndarray, y: np.ndarray) -> Line:
    """A line of at most POINTS points, each the mean of a group of steps, at the last of them, with
    the lowest and the highest.

    Up to POINTS steps: the numbers themselves. NaN where no step of a group has a number.
    """
    size = -(-len(x) // POINTS) or 1
    if size == 1:
        return Line(run, label, x.tolist(), y.tolist())
    groups = [y[begin : begin + size] for begin in range(0, len(y), size)]
    known = [group[np.isfinite(group)] for group in groups]

    def each(of: Any) -> list[float]:
        return [float(of(group)) if len(group) else math.nan for group in known]

    ends = [float(x[min(begin + size, len(x)) - 1]) for begin in range(0, len(x), size)]
    return Line(run, label, ends, each(np.mean), each(np.min), each(np.max))


def figure(value: float) -> str:
    """Of an axis: 0.25, 20k, 1e-5."""
    if abs(value) >= 1e15 or not math.isfinite(value):
        return f"{value:.0e}"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{round(value, 12):.6g}".replace("e-0", "e-")


def limits(chart: Chart) -> tuple[tuple[float, float], tuple[float, float]]:
    """What the axes span."""
    xs = [x for line in chart.lines for x in line.x]
    ys = [
        y for line in chart.lines for values in (line.y, line.low, line.high) for y in values or ()
    ]
    ys = [y for y in ys if math.isfinite(y) and (y > 0 or not chart.log)] or [0.1, 1.0]
    low, high = min(ys), max(ys)
    if chart.log:
        low, high = low / 1.2, high * 1.2
    else:
        margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        low, high = (0.0 if 0 <= low <= (high - low) * 0.5 else low - margin), high + margin
    x_low, x_high = min(xs, default=0.0), max(xs, default=1.0)
    across = (x_low, x_high if x_high > x_low else x_low + 1)
    return chart.x_limits or across, chart.y_limits or (low, high)


def ticks(low: float, high: float, log: bool, whole: bool = False) -> Ticks:
    from matplotlib.ticker import LogLocator, MaxNLocator

    def inside(locator: Any) -> list[float]:
        return [float(value) for value in locator.tick_values(low, high) if low <= value <= high]

    values = inside(LogLocator(numticks=6)) if log else []
    if len(values) < 2:
        values = inside(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole))
        values = [value for value in values if value > 0 or not log]
    return [(value, figure(value)) for value in values]
