"""A chart for the page: `layout` places everything, page.html draws it as SVG.

The SVG is our own because the page needs colours that follow light and dark, lines that can be
switched off, and text that is text.
"""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from adaptsft.analysis.report.charts import COLOURS, MARKED, Chart, Line, limits, ticks

WIDTH, HEIGHT, BOTTOM, TOP, RIGHT = 380, 224, 40, 10, 12
CHARACTER = 6.4  # widest digit of the page's 11 px, in px

Point = tuple[float, float]


def layout(chart: Chart) -> dict[str, Any]:
    """Everything that page.html draws, in px of a WIDTH x HEIGHT picture."""
    (x_low, x_high), (y_low, y_high) = limits(chart)
    y_ticks = chart.y_ticks if chart.y_ticks is not None else ticks(y_low, y_high, chart.log)
    x_ticks = chart.x_ticks or ticks(x_low, x_high, False, whole=True)
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

    def points(x: Sequence[float], y: Sequence[float]) -> list[Point | None]:
        pairs = zip(x, y, strict=True)
        return [(across(a), down(b)) if math.isfinite(b) else None for a, b in pairs]

    def drawn(line: Line) -> dict[str, Any]:
        places, dashed = points(line.x, line.y), (line.run or 0) >= len(COLOURS)
        parts: dict[str, Any] = {"run": line.run, "label": line.label, "dashed": dashed}
        if line.area:
            parts["area"] = _area(places, bottom)
        else:
            parts["path"] = _path(places)
        if line.low is not None and line.high is not None:
            upper, lower = points(line.x, line.high), points(line.x, line.low)
            outline = [*upper, *reversed(lower)]
            parts["band"] = _path([point for point in outline if point])
        seen = [place for place in places if place]
        if line.ends or (len(seen) <= MARKED and not line.area):
            parts["marks"] = [
                (f"{x:.1f}", f"{y:.1f}", line.ends and i == 0) for i, (x, y) in enumerate(seen)
            ]
        return parts

    bands = []
    for i, band in enumerate(chart.bands):
        begin, end = across(band.begin), across(band.end)
        bands.append((round(begin, 1), round(end - begin, 1), band.label, i))
    colour = COLOURS[(chart.run or 0) % len(COLOURS)]
    return {
        "lines": [drawn(line) for line in chart.lines],
        "box": [round(value, 1) for value in (left, TOP, right, bottom)],
        "x_ticks": _apart([(round(across(value), 1), label) for value, label in x_ticks]),
        "y_ticks": [(round(down(value), 1), label) for value, label in y_ticks],
        "bands": bands,
        "heat": None if chart.heat is None else _data_uri(chart.heat, colour),
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


def _path(points: Sequence[Point | None]) -> str:
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
        else:
            parts.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
            pen = "L"
    return "".join(parts)


def _area(points: Sequence[Point | None], bottom: float) -> str:
    """Bars side by side as one outline."""
    seen = [point for point in points if point]
    if len(seen) < 2:
        return ""
    half = (seen[1][0] - seen[0][0]) / 2
    corners = [(x + side, y) for x, y in seen for side in (-half, half)]
    return _path([(corners[0][0], bottom), *corners, (corners[-1][0], bottom)]) + "Z"


def _data_uri(heat: np.ndarray, colour: str) -> str:
    """A PNG of one pixel per cell: the colour, as opaque as the cell is full, so that it suits any
    background."""
    from matplotlib.image import imsave

    pixels = np.empty((*heat.shape, 4))
    pixels[..., :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    pixels[..., 3] = heat
    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(pixels[::-1]), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
