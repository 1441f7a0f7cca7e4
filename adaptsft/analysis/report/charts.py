"""A chart is described once; `layout` places it for the page's SVG (page.html draws it), `png` draws it with matplotlib.

The SVG is our own because the page needs colours that follow light and dark, lines that can be switched off, and text that is text.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptsft.drawing import canvas, save

POINTS = 150  # on a line; more steps than that are averaged in groups
WIDTH, HEIGHT, BOTTOM, TOP, RIGHT = 380, 224, 40, 10, 12
CHARACTER = 6.4  # widest digit of the page's 11 px, in px
MARKED = 16  # lines of up to this many points show them
COLOURS = (
    "#0a62c9",
    "#c2410c",
    "#15803d",
    "#7c3aed",
    "#be185d",
    "#0f766e",
    "#8a6100",
    "#566070",
)  # also in page.css, with dark ones
GREY = "#8a93a0"


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
    heat: np.ndarray | None = (
        None  # float64 in [0, 1], [rows, columns], the first row at the bottom: fills the chart
    )
    run: int | None = None  # where it is of one run only


def grouped(run: int, label: str, x: np.ndarray, y: np.ndarray) -> Line:
    """A line of at most POINTS points, each the mean of a group of steps, at the last of them, with the lowest and the highest.

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
        y
        for line in chart.lines
        for values in (line.y, line.low, line.high)
        if values is not None
        for y in values
    ]
    ys = [y for y in ys if math.isfinite(y) and (y > 0 or not chart.log)] or [0.1, 1.0]
    low, high = min(ys), max(ys)
    if chart.log:
        low, high = low / 1.2, high * 1.2
    else:
        margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        low, high = (0.0 if 0 <= low <= (high - low) * 0.5 else low - margin), high + margin
    x_low, x_high = min(xs, default=0.0), max(xs, default=1.0)
    return chart.x_limits or (x_low, x_high if x_high > x_low else x_low + 1), chart.y_limits or (
        low,
        high,
    )


def ticks(low: float, high: float, log: bool, whole: bool = False) -> Ticks:
    from matplotlib.ticker import LogLocator, MaxNLocator

    values = LogLocator(numticks=6).tick_values(low, high) if log else []
    inside = [float(value) for value in values if low <= value <= high]
    if len(inside) < 2:
        inside = [
            float(value)
            for value in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(
                low, high
            )
            if low <= value <= high
        ]
        inside = [value for value in inside if value > 0 or not log]
    return [(value, figure(value)) for value in inside]


def layout(chart: Chart) -> dict[str, Any]:
    """Everything that page.html draws, in px of a WIDTH x HEIGHT picture."""
    (x_low, x_high), (y_low, y_high) = limits(chart)
    y_ticks = chart.y_ticks if chart.y_ticks is not None else ticks(y_low, y_high, chart.log)
    left = 12 + CHARACTER * max((len(label) for _, label in y_ticks), default=1)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (right - left)

    def down(value: float) -> float:
        if chart.log:
            value, low, high = math.log(max(value, y_low)), math.log(y_low), math.log(y_high)
        else:
            low, high = y_low, y_high
        return bottom - (min(max(value, low), high) - low) / (high - low) * (bottom - TOP)

    def points(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float] | None]:
        return [
            (across(a), down(b)) if math.isfinite(b) else None for a, b in zip(x, y, strict=True)
        ]

    lines = []
    for line in chart.lines:
        places = points(line.x, line.y)
        drawn: dict[str, Any] = {
            "run": line.run,
            "label": line.label,
            "dashed": (line.run or 0) >= len(COLOURS),
        }
        if line.area:
            drawn["area"] = _area(places, bottom)
        else:
            drawn["path"] = _path(places)
        if line.low is not None and line.high is not None:
            upper, lower = (
                [p for p in points(line.x, values) if p] for values in (line.high, line.low)
            )
            drawn["band"] = _path([*upper, *reversed(lower)])
        seen = [place for place in places if place]
        if line.ends or (len(seen) <= MARKED and not line.area):
            drawn["marks"] = [
                (f"{x:.1f}", f"{y:.1f}", line.ends and i == 0) for i, (x, y) in enumerate(seen)
            ]
        lines.append(drawn)
    return {
        "lines": lines,
        "box": [round(value, 1) for value in (left, TOP, right, bottom)],
        "x_ticks": _apart(
            [
                (round(across(v), 1), label)
                for v, label in chart.x_ticks or ticks(x_low, x_high, False, whole=True)
            ]
        ),
        "y_ticks": [(round(down(value), 1), label) for value, label in y_ticks],
        "bands": [
            (round(across(b.begin), 1), round(across(b.end) - across(b.begin), 1), b.label, i)
            for i, b in enumerate(chart.bands)
        ],
        "heat": None
        if chart.heat is None
        else _data_uri(chart.heat, COLOURS[(chart.run or 0) % len(COLOURS)]),
        "span": [x_low, x_high],
    }


def _apart(found: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The ticks whose labels touch neither the one before nor the picture's edge."""
    kept: list[tuple[float, str]] = []
    for x, label in found:
        if x + CHARACTER * len(label) / 2 > WIDTH:
            continue
        if not kept or x - kept[-1][0] > CHARACTER * (len(label) + len(kept[-1][1])) / 2 + 6:
            kept.append((x, label))
    return kept


def _path(points: list[tuple[float, float] | None]) -> str:
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
        else:
            parts.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
            pen = "L"
    return "".join(parts)


def _area(points: list[tuple[float, float] | None], bottom: float) -> str:
    """Bars side by side as one outline."""
    seen = [point for point in points if point]
    if len(seen) < 2:
        return ""
    half = (seen[1][0] - seen[0][0]) / 2
    corners = [(x + side, y) for x, y in seen for side in (-half, half)]
    return _path([(corners[0][0], bottom), *corners, (corners[-1][0], bottom)]) + "Z"


def _data_uri(heat: np.ndarray, colour: str) -> str:
    """A PNG of one pixel per cell: the colour, as opaque as the cell is full, so that it suits any background."""
    from matplotlib.image import imsave

    pixels = np.empty((*heat.shape, 4))
    pixels[..., :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    pixels[..., 3] = heat
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(pixels[::-1]), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def png(chart: Chart, path: Path) -> None:
    """The same chart for a slide or a paper."""
    import matplotlib

    with matplotlib.rc_context(
        {
            "text.parse_math": False,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure, axes = canvas(size=(5.4, 3.4))
        axis = axes[0, 0]
        x_limits, y_limits = limits(chart)
        for i, band in enumerate(chart.bands):
            axis.axvspan(band.begin, band.end, color=GREY, alpha=0.08 + 0.1 * i, linewidth=0)
            axis.text(
                (band.begin + band.end) / 2,
                0.98,
                band.label,
                ha="center",
                va="top",
                transform=axis.get_xaxis_transform(),
            )
        if chart.heat is not None:
            colour = COLOURS[(chart.run or 0) % len(COLOURS)]
            axis.imshow(
                chart.heat,
                origin="lower",
                aspect="auto",
                extent=(*x_limits, *y_limits),
                cmap=_fading(colour),
                vmin=0,
                vmax=1,
            )
        for line in chart.lines:
            colour = GREY if line.run is None else COLOURS[line.run % len(COLOURS)]
            style = "none" if line.run is None else "--" if line.run >= len(COLOURS) else "-"
            if line.area:
                axis.fill_between(
                    line.x,
                    line.y,
                    step="mid",
                    color=colour,
                    alpha=0.35,
                    linewidth=0,
                    label=line.label,
                )
                continue
            if line.low is not None and line.high is not None:
                axis.fill_between(
                    line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0
                )
            few = sum(map(math.isfinite, line.y)) <= MARKED
            marker: dict[str, Any] = (
                {"marker": "o", "markersize": 4, "clip_on": False} if few else {}
            )
            axis.plot(
                line.x,
                line.y,
                linestyle=style,
                color=colour,
                linewidth=1.4,
                label=line.label,
                **marker,
            )
            if line.ends:
                axis.plot(
                    line.x[0],
                    line.y[0],
                    "o",
                    color="white",
                    markeredgecolor=colour,
                    markersize=6,
                    clip_on=False,
                    zorder=3,
                )
        axis.set(title=chart.title, xlabel=chart.x_label, xlim=x_limits, ylim=y_limits)
        if chart.log:
            axis.set_yscale("log")
            axis.minorticks_off()
        y_ticks = chart.y_ticks if chart.y_ticks is not None else ticks(*y_limits, chart.log)
        axis.set_yticks(
            [value for value, _ in y_ticks], [label for _, label in y_ticks], minor=False
        )
        if chart.x_ticks is not None:
            axis.set_xticks(
                [value for value, _ in chart.x_ticks], [label for _, label in chart.x_ticks]
            )
        if chart.lines and not chart.y_ticks:
            figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        save(figure, path)


def _fading(colour: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("run", ["white", colour])
