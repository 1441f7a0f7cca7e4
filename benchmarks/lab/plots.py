"""The lab's pictures: gaps of all methods, the inversion along the continuum, and those of
benchmarks.paper.figures from the lab's scores."""

import itertools
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from adaptsft.drawing import COLOURS, MARKERS, canvas, save
from adaptsft.errors import ConfigError
from benchmarks.lab.scores import base_of
from benchmarks.paper.figures.curves import Curve, trajectories
from benchmarks.paper.figures.sweeps import alpha, quantiles

COLUMNS = {"greedy": "greedy", "sampled": "temperature 1"}
# the method that trains on all tokens -> its name under a threshold
WHOLE = {"alpha_0": "nll", "neg_p": "neg_p", "log1mp": "log1mp"}


def write(
    folder: Path, results: list[dict[str, Any]], of_metric: dict[str, Any], gaps: dict[str, Any]
) -> list[Path]:
    """The pictures that these results can fill; returns their paths. `of_metric` and `gaps` are
    report's Scores and gaps by metric."""
    drawn = rows(of_metric)
    made = []
    for name, draw in (
        ("gaps", lambda: gap_table(gaps)),
        ("trajectories", lambda: trajectories(moves(results), "share of the run")),
        ("inversion", lambda: inversion(of_metric)),
        ("alpha", lambda: alpha(drawn)),
        ("quantiles", lambda: quantiles(drawn)),
    ):
        with suppress(ConfigError):  # nothing there to fill it
            made.append(save(draw(), folder / f"{name}.png", dpi=130))
    return made


def rows(of_metric: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores as rows of benchmarks.paper.figures, in percent: a model is a cell, a column is a
    metric."""
    found = []
    for metric, column in COLUMNS.items():
        for cell, of in of_metric[metric].items():
            likelihood = of_metric["train_mean_p"].get(cell, {})
            for method, score in of.items():
                row = {"model": str(cell), "objective": method, "column": column, "origin": "ours"}
                row |= {
                    "value": 100 * score.mean,
                    "se": score.error and 100 * score.error,
                    "n": score.runs,
                }
                row |= {"mean_p": likelihood[method].mean} if method in likelihood else {}
                found += [row | more for more in _places(method)]
    return found


def _places(method: str) -> Iterable[dict[str, Any]]:
    """Where a method stands in a sweep: on alpha, on the quantiles, on both, or (one empty dict)
    nowhere."""
    if fixed := re.fullmatch(r"alpha_([\d.]+)", method):
        yield {"alpha": float(fixed[1])}
    if kept := re.fullmatch(r"(\w+)_(top|low)(\d+)", method):
        top = kept[2] == "top"
        yield {
            "objective": kept[1],
            "side": ">=" if top else "<=",
            "percentile": 100 - int(kept[3]) if top else int(kept[3]),
        }
    if method in WHOLE:
        yield {"objective": WHOLE[method], "side": ">=", "percentile": 0}
    if not fixed and not kept and method not in WHOLE:
        yield {}


def moves(results: list[dict[str, Any]]) -> list[Curve]:
    """What is moved, over the share of the run: a panel per method and family, a line per regime
    and source; the first base and seed."""
    curves, first = [], min(map(_run, results))
    ran = [result for result in results if _run(result) == first and result["curves"]]
    for quantity, result in itertools.product(("alpha", "floor", "lower", "lr_scale"), ran):
        of = result["curves"]
        share = [step / of["step"][-1] for step in of["step"]]
        for source, curve in of.get("sources", {"": of}).items():
            if quantity not in curve:  # in results of before it was kept; lr_scale of a source
                continue
            label = result["regime"] + (f": {source}" if source else "")
            curves.append(
                Curve(
                    f"{result['method']}, {result['family']}",
                    label,
                    quantity,
                    share,
                    curve[quantity],
                )
            )
    return curves


def _run(result: dict[str, Any]) -> tuple[str, int]:
    return base_of(result), result["seed"]


def gap_table(gaps: dict[str, Any]) -> Any:
    """Gap to the oracle in points, of every method in every cell."""
    if not any(gaps.values()):
        raise ConfigError("no fixed alpha to compare with")
    cells = list(
        dict.fromkeys(cell for of in gaps.values() for by_cell in of.values() for cell in by_cell)
    )
    methods = sorted(
        gaps["greedy"],
        key=lambda name: max(value for of in gaps.values() for value in of[name].values()),
    )
    figure, axes = canvas(1, 2, (3 + 0.31 * len(methods), 2 + 0.24 * len(cells)), sharey=True)
    for axis, (metric, of) in zip(axes[0], gaps.items(), strict=True):
        values = [[of[method].get(cell, float("nan")) for method in methods] for cell in cells]
        axis.imshow(values, cmap="Reds", vmin=0, vmax=50, aspect="auto")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:
                    axis.text(
                        x,
                        y,
                        f"{value:.0f}",
                        ha="center",
                        va="center",
                        fontsize=6,
                        color="white" if value > 30 else "black",
                    )
        axis.set_xticks(range(len(methods)), methods, rotation=90)
        axis.set_yticks(range(len(cells)), [str(cell) for cell in cells], fontsize=7)
        axis.set_title("greedy" if metric == "greedy" else "temperature 1")
    figure.colorbar(
        axes[0][0].images[0], ax=axes, label="points below the best fixed alpha", shrink=0.6
    )
    return figure


def inversion(of_metric: dict[str, Any]) -> Any:
    """-p against NLL over the place on the continuum: in small, Tables 2 to 4 of arXiv:2510.00526.
    A dot is a cell."""
    from matplotlib.lines import Line2D

    points = []
    for cell, of in of_metric["train_mean_p"].items():
        if {"base", "alpha_0", "alpha_1"} <= of.keys():
            scores = {metric: of_metric[metric][cell] for metric in COLUMNS}
            ahead = {
                metric: 100 * (found["alpha_1"].mean - found["alpha_0"].mean)
                for metric, found in scores.items()
            }
            points.append((cell, of["base"].mean, ahead))
    if not points:
        raise ConfigError("no cell with the base model, NLL and -p")
    figure, axes = canvas(1, 2, (5.5, 4.5), sharey=True)
    colours = dict(
        zip(
            dict.fromkeys(cell.regime.partition("_")[0] for cell, *_ in points),
            COLOURS,
            strict=False,
        )
    )
    markers = dict(zip(dict.fromkeys(cell.family for cell, *_ in points), MARKERS, strict=False))
    variants = dict.fromkeys(cell.regime.partition("_")[2] for cell, *_ in points)
    fills = dict(
        zip(
            variants,
            itertools.cycle(("none", "full", "left", "bottom", "top", "right")),
            strict=False,
        )
    )
    for axis, metric, title in zip(axes[0], COLUMNS, COLUMNS.values(), strict=True):
        for cell, mean_p, ahead in points:
            kind, _, variant = cell.regime.partition("_")
            axis.plot(
                mean_p,
                ahead[metric],
                markers[cell.family],
                color=colours[kind],
                fillstyle=fills[variant],
                markersize=7,
            )
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set(
            title=title,
            xlabel="mean p of the training targets under the base model (Eq. 5)",
            ylabel="points that alpha 1 (-p) is above NLL",
        )
    looks = [(kind, {"marker": "o", "color": colour}) for kind, colour in colours.items()]
    looks += [(family, {"marker": marker, "color": "0.4"}) for family, marker in markers.items()]
    looks += [
        (variant, {"marker": "o", "color": "0.4", "fillstyle": fill})
        for variant, fill in fills.items()
    ]
    handles = [Line2D([], [], linestyle="", label=label, **look) for label, look in looks]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    return figure
