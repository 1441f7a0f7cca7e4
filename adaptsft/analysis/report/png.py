"""A chart as a PNG, drawn by matplotlib: for a slide or a paper."""

import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import LinearSegmentedColormap

from adaptsft.analysis.report.charts import COLOURS, MARKED, Chart, Line, limits, ticks
from adaptsft.drawing import canvas, save

GREY = "#8a93a0"
STYLE = {
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write(chart: Chart, path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(size=(5.4, 3.4))
        axis = axes[0, 0]
        x_limits, y_limits = limits(chart)
        for i, band in enumerate(chart.bands):
            axis.axvspan(band.begin, band.end, color=GREY, alpha=0.08 + 0.1 * i, linewidth=0)
            middle, across = (band.begin + band.end) / 2, axis.get_xaxis_transform()
            axis.text(middle, 0.98, band.label, ha="center", va="top", transform=across)
        if chart.heat is not None:
            colour = COLOURS[(chart.run or 0) % len(COLOURS)]
            axis.imshow(
                chart.heat,
                origin="lower",
                aspect="auto",
                extent=(*x_limits, *y_limits),
                cmap=LinearSegmentedColormap.from_list("run", ["white", colour]),
                vmin=0,
                vmax=1,
            )
        for line in chart.lines:
            _draw(axis, line)
        axis.set(title=chart.title, xlabel=chart.x_label, xlim=x_limits, ylim=y_limits)
        if chart.log:
            axis.set_yscale("log")
            axis.minorticks_off()
        y_ticks = chart.y_ticks if chart.y_ticks is not None else ticks(*y_limits, chart.log)
        axis.set_yticks([value for value, _ in y_ticks], [label for _, label in y_ticks])
        if chart.x_ticks is not None:
            values, labels = zip(*chart.x_ticks, strict=True)
            axis.set_xticks(values, labels)
        if chart.lines and not chart.y_ticks:
            figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        save(figure, path)


def _draw(axis: Any, line: Line) -> None:
    colour = GREY if line.run is None else COLOURS[line.run % len(COLOURS)]
    style = "none" if line.run is None else "--" if line.run >= len(COLOURS) else "-"
    shade: dict[str, Any] = {"color": colour, "linewidth": 0}
    if line.area:
        axis.fill_between(line.x, line.y, step="mid", alpha=0.35, label=line.label, **shade)
        return
    if line.low is not None and line.high is not None:
        axis.fill_between(line.x, line.low, line.high, alpha=0.15, **shade)
    marker: dict[str, Any] = {}
    if sum(map(math.isfinite, line.y)) <= MARKED:
        marker = {"marker": "o", "markersize": 4, "clip_on": False}
    axis.plot(
        line.x, line.y, linestyle=style, color=colour, linewidth=1.4, label=line.label, **marker
    )
    if line.ends:
        hollow: dict[str, Any] = {"color": "white", "markeredgecolor": colour, "markersize": 6}
        axis.plot(line.x[0], line.y[0], "o", clip_on=False, zorder=3, **hollow)
