"""The lab's pictures: gaps of all methods, alpha over the run, and the inversion along the continuum."""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd")


def write(folder: Path, results: list[dict[str, Any]], of_metric: dict[str, Any], gaps: dict[str, Any], fixed: list[str]) -> list[Path]:
    """The pictures that these results can fill; returns their paths. `of_metric` and `gaps` are report's Scores and gaps by metric."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made = []
    for name, draw in (
        ("gaps", lambda: gap_table(plt, gaps)),
        ("trajectories", lambda: trajectories(plt, results)),
        ("inversion", lambda: inversion(plt, of_metric)),
        ("alpha", lambda: alpha_sweep(plt, of_metric, fixed)),
        ("quantiles", lambda: quantiles(plt, of_metric)),
    ):
        figure = draw()
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=130)
            plt.close(figure)
            made.append(folder / f"{name}.png")
    return made


def gap_table(plt: Any, gaps: dict[str, Any]) -> Any:
    """Gap to the oracle in points, of every method in every cell."""
    if not any(gaps.values()):
        return None
    cells = list(dict.fromkeys(cell for of in gaps.values() for by_cell in of.values() for cell in by_cell))
    methods = sorted(gaps["greedy"], key=lambda name: max(value for of in gaps.values() for value in of[name].values()))
    figure, axes = plt.subplots(1, 2, figsize=(6 + 0.62 * len(methods), 2 + 0.24 * len(cells)), layout="constrained", sharey=True)
    for axis, (metric, of) in zip(axes, gaps.items(), strict=True):
        values = [[of[method].get(cell, float("nan")) for method in methods] for cell in cells]
        image = axis.imshow(values, cmap="Reds", vmin=0, vmax=50, aspect="auto")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:
                    axis.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=6, color="white" if value > 30 else "black")
        axis.set_xticks(range(len(methods)), methods, rotation=90)
        axis.set_yticks(range(len(cells)), [str(cell) for cell in cells], fontsize=7)
        axis.set_title("greedy" if metric == "greedy" else "temperature 1")
    figure.colorbar(image, ax=axes, label="points below the best fixed alpha", shrink=0.6)
    return figure


def trajectories(plt: Any, results: list[dict[str, Any]]) -> Any:
    """Alpha over the run wherever it moves: a picture per family, a line per regime and source; the first seed."""
    curves: dict[tuple[str, str], list[tuple[str, list[int], list[float]]]] = defaultdict(list)
    first = min(result["seed"] for result in results)
    for result in results:
        of = result["curves"]
        if result["seed"] == first and of:
            for source, curve in of.get("sources", {"": of}).items():
                if max(curve["alpha"]) - min(curve["alpha"]) > 1e-6:
                    label = result["regime"] + (f": {source}" if source else "")
                    curves[result["method"], result["family"]].append((label, of["step"], curve["alpha"]))
    if not curves:
        return None
    methods, families = sorted({m for m, _ in curves}), sorted({f for _, f in curves})
    figure, axes = plt.subplots(
        len(methods), len(families), figsize=(5.5 * len(families), 3 * len(methods)), layout="constrained", squeeze=False, sharey="row"
    )
    for row, method in zip(axes, methods, strict=True):
        for axis, family in zip(row, families, strict=True):
            for number, (label, steps, alpha) in enumerate(curves[method, family]):
                style = ("-", "--", ":")[number // len(COLOURS) % 3]
                axis.plot(
                    [step / steps[-1] for step in steps], alpha, style, color=COLOURS[number % len(COLOURS)], label=label, linewidth=1
                )
            axis.set(title=f"{method}, {family}", xlabel="share of the run", ylabel="alpha")
            axis.legend(fontsize=5, ncols=2, frameon=False)
    return figure


def inversion(plt: Any, of_metric: dict[str, Any]) -> Any:
    """-p against NLL over the place on the continuum: in small, Tables 2 to 4 of arXiv:2510.00526. A dot is a cell."""
    points = []
    for cell, of in of_metric["train_mean_p"].items():
        if {"base", "alpha_0", "alpha_1"} <= of.keys():
            scores = [of_metric[metric][cell] for metric in ("greedy", "sampled")]
            points.append((cell, of["base"].mean, *(100 * (s["alpha_1"].mean - s["alpha_0"].mean) for s in scores)))
    if not points:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    kinds = sorted({cell.regime.partition("@")[0] for cell, *_ in points})
    markers = dict(zip(dict.fromkeys(cell.family for cell, *_ in points), "os^Dv*", strict=False))
    for axis, place, title in zip(axes, (2, 3), ("greedy", "temperature 1"), strict=True):
        for point in points:
            kind = kinds.index(point[0].regime.partition("@")[0])
            axis.plot(point[1], point[place], markers[point[0].family], color=plt.get_cmap("tab20")(kind % 20), markersize=6)
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set(
            title=title,
            xlabel="mean p of the training targets under the base model (Eq. 5)",
            ylabel="points that alpha 1 (-p) is above NLL",
        )
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=plt.get_cmap("tab20")(i % 20), label=kind) for i, kind in enumerate(kinds)
    ]
    handles += [plt.Line2D([], [], marker=marker, linestyle="", color="black", label=family) for family, marker in markers.items()]
    figure.legend(handles=handles, loc="outside right center", fontsize=7, frameon=False)
    return figure


def alpha_sweep(plt: Any, of_metric: dict[str, Any], fixed: list[str]) -> Any:
    """Exact match and mean p of the training targets over a fixed alpha: in small, Fig. 4 of arXiv:2510.00526; means over families."""
    alphas = {name: float(name.removeprefix("alpha_")) for name in fixed}
    groups: dict[str, list[Any]] = defaultdict(list)
    for cell, of in of_metric["sampled"].items():
        if not cell.source and set(fixed) <= of.keys():
            groups[cell.regime].append(cell)
    if not groups:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    titles = {"greedy": "exact match, greedy", "sampled": "exact match, temperature 1", "train_mean_p": "mean p of the training targets"}
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        for number, (regime, cells) in enumerate(groups.items()):
            values = [statistics.mean(of_metric[metric][cell][name].mean for cell in cells) for name in alphas]
            style = ("-", "--", ":")[number // len(COLOURS) % 3]
            axis.plot(list(alphas.values()), values, style, marker=".", color=COLOURS[number % len(COLOURS)], label=regime)
        axis.set(title=title, xlabel="alpha (0: NLL, 1: -p)", ylim=(0, 1.02))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    return figure


def quantiles(plt: Any, of_metric: dict[str, Any]) -> Any:
    """Thresholds at quantiles of the base model's p: in small, Fig. 3 of arXiv:2510.00526. Left to right, ever fewer unlikely tokens."""
    kept = {"low50": "least likely\n50 %", "": "all", "top90": "likeliest\n90 %", "top50": "50 %", "top10": "10 %"}
    objectives = {"-log p": ("nll", "alpha_0"), "-p": ("neg_p", "neg_p"), "log(1-p)": ("log1mp", "log1mp")}
    cells = [cell for cell, of in of_metric["greedy"].items() if "nll_top50" in of]
    if not cells:
        return None
    figure, axes = plt.subplots(2, len(cells), figsize=(1 + 3.6 * len(cells), 6.5), layout="constrained", squeeze=False, sharey=True)
    for row, (metric, title) in zip(axes, (("greedy", "greedy"), ("sampled", "temperature 1")), strict=True):
        for axis, cell in zip(row, cells, strict=True):
            for number, (label, (stem, whole)) in enumerate(objectives.items()):
                methods = [f"{stem}_{key}" if key else whole for key in kept]
                values = [of_metric[metric][cell][m].mean if m in of_metric[metric][cell] else float("nan") for m in methods]
                axis.plot(range(len(kept)), values, "o-", color=COLOURS[number], label=label)
            axis.set_xticks(range(len(kept)), list(kept.values()), fontsize=7)
            axis.set(title=f"{cell}, {title}", ylabel="exact match", ylim=(-0.02, 1.02))
    axes[0, 0].legend(frameon=False)
    return figure
