"""The lab's results as tables: results.csv with every number, results.md with what is asked of it,
and the plots; results.json holds all runs in one file, from which the same can be made again.

A cell is a task of a regime that is scored by itself: a regime, or a source of it where it has
several. The oracle of a cell is the best fixed alpha there, a gap what a method lacks to it (never
below 0), regret the mean of its gaps.
"""

import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from adaptsft.errors import ConfigError
from adaptsft.training.environment import environment
from benchmarks.lab import plots
from benchmarks.lab.regimes import FAMILIES, find
from benchmarks.lab.runs import UNTOUCHED

METRICS = {"greedy": "greedy", "sampled": "temperature 1"}


class Cell(NamedTuple):
    family: str
    regime: str
    source: str  # "" where the regime is one source

    def __str__(self) -> str:
        return f"{self.family} {self.regime}" + (f": {self.source}" if self.source else "")


class Score(NamedTuple):
    """Over seeds; `error` is the standard error of the mean, None from one seed."""

    mean: float
    error: float | None
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (
            f"±{self.error:.2f}".replace("±0.", "±.") if self.error is not None else ""
        )


def score(values: list[float]) -> Score:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Score(statistics.mean(values), error, len(values))


Scores = dict[Cell, dict[str, Score]]  # cell -> method -> score


def read(place: Path) -> list[dict[str, Any]]:
    """All results in a lab's folder, or in a results.json, in order of family, regime, method and
    seed. Raises ConfigError where there is none."""
    if place.is_file():
        try:
            results = [result | {"curves": {}} for result in json.loads(place.read_text())["runs"]]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{place}: not a results.json of the lab") from None
    else:
        results = [json.loads(path.read_text()) for path in (place / "results").rglob("*.json")]
    if not results:
        raise ConfigError(
            f"{place}: no results in {place / 'results'}; run the lab first, or name its folder"
        )
    return sorted(
        results, key=lambda result: [result[key] for key in ("family", "regime", "method", "seed")]
    )


def selected(results: list[dict[str, Any]], **wanted: list[str] | None) -> list[dict[str, Any]]:
    """Those whose family, regime or seed is among the wanted ones; None is any. Raises ConfigError
    where none is left."""
    chosen = [
        result
        for result in results
        if all(names is None or str(result[key]) in names for key, names in wanted.items())
    ]
    if not chosen:
        raise ConfigError(
            f"no results of {', '.join(f'{key} {names}' for key, names in wanted.items() if names)}"
        )
    return chosen


def scores(results: list[dict[str, Any]], metric: str) -> Scores:
    """`metric` is one of `greedy`, `sampled`, `diversity` or `train_mean_p`; cells without it are
    left out."""
    values: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        family, regime = result["family"], result["regime"]
        if family in FAMILIES and find(regime)[0].sources:
            for source, part in result["parts"].items():
                part = part | (
                    {"train_mean_p": result["sources"][source]} if "sources" in result else {}
                )
                if metric in part:
                    values[Cell(family, regime, source)][result["method"]].append(part[metric])
        else:
            value = (
                result[metric]
                if metric in result
                else next(iter(result.get("parts", {"": {}}).values())).get(metric)
            )
            if value is not None:
                values[Cell(family, regime, "")][result["method"]].append(value)
    return {
        cell: {method: score(found) for method, found in of.items()} for cell, of in values.items()
    }


def oracle(of: dict[str, Score], fixed: list[str]) -> str | None:
    """The best fixed method of a cell; the first of equals, None where none was run."""
    return max((name for name in fixed if name in of), key=lambda name: of[name].mean, default=None)


def gaps(found: Scores, fixed: list[str]) -> dict[str, dict[Cell, float]]:
    """method -> cell -> gap to the oracle, in points."""
    result: dict[str, dict[Cell, float]] = defaultdict(dict)
    for cell, of in found.items():
        best = oracle(of, fixed)
        for method, value in of.items():
            if best is not None:
                result[method][cell] = max(0.0, 100 * (of[best].mean - value.mean))
    return dict(result)


def write(
    folder: Path, results: list[dict[str, Any]], fixed: list[str], shown: list[str] | None = None
) -> None:
    """Leave results.json, results.csv, results.md and the plots in the folder, and print where.
    `fixed` are the methods of the oracle; the tables show the methods `shown`, or all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        {key: value for key, value in result.items() if key not in ("curves", "keys")}
        for result in results
    ]
    (folder / "results.json").write_text(
        json.dumps({"environment": environment(), "runs": runs}, separators=(",", ":")) + "\n"
    )
    of_metric = {
        metric: scores(results, metric) for metric in (*METRICS, "diversity", "train_mean_p")
    }
    _csv(folder / "results.csv", of_metric, fixed)
    families = list(dict.fromkeys(result["family"] for result in results))
    commits = sorted({result["commit"] for result in results})
    seconds = sum(result.get("cpu_seconds", result.get("seconds", 0.0)) for result in results)
    lines = [
        "# The continuum lab",
        "",
        f"{len(results):,} runs, {seconds / 3600:.1f} hours of runs, code at commit "
        f"{', '.join(commits)}. Exact match, mean ± standard "
        "error over seeds. The oracle is the best fixed alpha of each row; a gap is what a method "
        "lacks to it, in points.",
        *(
            line
            for group in ([families, *([f] for f in families)] if len(families) > 1 else [families])
            for line in _summary(group, of_metric, fixed, shown)
        ),
    ]
    for family in families:
        lines += _inversion(family, of_metric)
    for metric, name in METRICS.items():
        for family in families:
            lines += [
                "",
                f"## {family}, {name}",
                "",
                *_scores(family, of_metric[metric], fixed, shown),
            ]
    if of_metric["diversity"]:
        lines += ["", "## Distinct right answers in 8 samples, where several are right", ""]
        lines += [
            line
            for family in families
            for line in [*_scores(family, of_metric["diversity"], [], shown), ""]
        ]
    lines += [
        "",
        "## Mean p of the training targets, noise included (Eq. 5): of the base model, and after "
        "training",
        "",
    ]
    lines += [
        line
        for family in families
        for line in [*_scores(family, of_metric["train_mean_p"], [], shown), ""]
    ]
    (folder / "results.md").write_text("\n".join(lines) + "\n")
    made = plots.write(
        folder, results, of_metric, {metric: gaps(of_metric[metric], fixed) for metric in METRICS}
    )
    print("\n".join(_summary(families, of_metric, fixed, shown)))
    print(
        f"\n{folder}/results.md, results.csv, results.json, {', '.join(path.name for path in made)}"
    )


def _summary(
    families: list[str], of_metric: dict[str, Scores], fixed: list[str], shown: list[str] | None
) -> list[str]:
    """Worst gap and regret of every method over the cells of some families, and in how many cells
    it is within 2 or 5 points of the oracle on both metrics. Only cells that the method was run in
    can count: their number is in the table."""
    by_metric = {
        metric: gaps({c: v for c, v in of_metric[metric].items() if c.family in families}, fixed)
        for metric in METRICS
    }
    rows = []
    for method in by_metric["greedy"]:
        if shown is not None and method not in (*shown, *fixed):
            continue
        row, worst_of_all, cells = [method], 0.0, by_metric["greedy"][method]
        for metric in METRICS:
            of = by_metric[metric][method]
            worst = max(of, key=lambda cell: of[cell])
            worst_of_all = max(worst_of_all, of[worst])
            row += [
                f"{of[worst]:.1f}",
                str(worst) if of[worst] > 0 else "",
                f"{statistics.mean(of.values()):.1f}",
            ]
        both = [max(by_metric[metric][method][cell] for metric in METRICS) for cell in cells]
        row += [str(sum(gap <= points + 1e-6 for gap in both)) for points in (2, 5)]
        rows.append((worst_of_all, [*row, str(len(cells))]))
    header = [
        "method",
        *(
            f"{what}, {name}"
            for name in METRICS.values()
            for what in ("worst gap", "where", "regret")
        ),
    ]
    rows = [[*header, "within 2", "within 5", "of cells"], *(row for _, row in sorted(rows))]
    return ["", f"## Gaps to the oracle: {', '.join(families)}", "", *table(rows)]


# Tables 2 to 4 and 11 of arXiv:2510.00526: its name of an objective, ours
PAPER = {
    "base": UNTOUCHED,
    "-log p": "alpha_0",
    "-log p, p >= .2": "threshold_0.2",
    "-p": "alpha_1",
}


def _inversion(family: str, of_metric: dict[str, Scores]) -> list[str]:
    """What -p and NLL do along the continuum, as far as it was run: greedy and temperature 1, with
    the base model's mean p (Eq. 5)."""
    cells = [
        cell
        for cell, of in of_metric["sampled"].items()
        if cell.family == family and {"alpha_0", "alpha_1", UNTOUCHED} <= of.keys()
    ]
    cells = sorted(
        (cell for cell in cells if not cell.source),
        key=lambda cell: -of_metric["train_mean_p"][cell][UNTOUCHED].mean,
    )
    if not cells:
        return []
    rows = [["", *(cell.regime for cell in cells)]]
    rows.append(
        [
            "mean p of the base",
            *(f"{of_metric['train_mean_p'][cell][UNTOUCHED].mean:.2f}" for cell in cells),
        ]
    )
    for name, method in PAPER.items():
        if not any(method in of_metric["sampled"][cell] for cell in cells):
            continue
        found = [[of_metric[metric][cell].get(method) for metric in METRICS] for cell in cells]
        rows.append(
            [name, *(" / ".join(f"{one.mean:.2f}" for one in pair if one) for pair in found)]
        )
    tables = "Tables 2 to 4 and 11 of arXiv:2510.00526 in small"
    title = f"{family}: the inversion along the continuum ({tables}), greedy / temperature 1"
    return ["", f"## {title}", "", *table(rows)]


def _scores(family: str, found: Scores, fixed: list[str], shown: list[str] | None) -> list[str]:
    """Rows are cells, columns methods. The oracle's score is bold, or a column of its own where
    only some methods are shown."""
    chosen = {cell: of for cell, of in found.items() if cell.family == family}
    methods = sorted(
        {method for of in chosen.values() for method in of},
        key=lambda name: (name != UNTOUCHED, name not in fixed, name),
    )
    apart = shown is not None and bool(fixed)
    methods = methods if shown is None else [name for name in shown if name in methods]
    rows = [["", *(["oracle"] if apart else []), *methods]]
    for cell, of in chosen.items():
        best = oracle(of, fixed)
        cells = [str(of[name]) if name in of else "" for name in methods]
        if apart:
            cells = [f"{of[best].mean:.2f} ({best})" if best else "", *cells]
        else:
            cells = [
                f"**{text}**" if name == best else text
                for name, text in zip(methods, cells, strict=True)
            ]
        rows.append([str(cell).removeprefix(f"{family} "), *cells])
    return table(rows) if chosen else []


def table(rows: list[list[str]]) -> list[str]:
    """Markdown that is aligned for a terminal too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _csv(path: Path, of_metric: dict[str, Scores], fixed: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "family",
                "regime",
                "source",
                "metric",
                "method",
                "mean",
                "standard_error",
                "seeds",
                "oracle",
                "gap_points",
            ]
        )
        for metric, found in of_metric.items():
            differences = gaps(found, fixed) if metric in METRICS else {}
            for cell, of in found.items():
                best = oracle(of, fixed) if metric in METRICS else None
                for method, value in of.items():
                    gap = differences.get(method, {}).get(cell)
                    row = [
                        *cell,
                        metric,
                        method,
                        round(value.mean, 5),
                        value.error and round(value.error, 5),
                        value.seeds,
                        best,
                    ]
                    writer.writerow([*row, gap if gap is None else round(gap, 3)])
