"""The lab's results as tables: results.csv with every number, results.md with what is asked of it,
and the plots; results.json holds all runs in one file, from which the same can be made again.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError
from adaptsft.training.environment import environment
from benchmarks.lab import plots, tables
from benchmarks.lab.scores import (
    METRICS,
    MORE,
    OTHERS,
    Results,
    Scores,
    base_of,
    gaps,
    of_other_bases,
    oracle,
    scores,
    tuned,
)


def read(place: Path) -> Results:
    """All results in a lab's folder, or in a results.json, in order of family, regime, method, base
    and seed. Raises ConfigError where there is none."""
    if place.is_file():
        try:
            content = json.loads(place.read_text())
            bases = content.get("bases", {})
            results = [
                one | {"curves": {}} | _scores_of_base(one, bases) for one in content["runs"]
            ]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{place}: not a results.json of the lab") from None
    else:
        results = [json.loads(path.read_text()) for path in (place / "results").rglob("*.json")]
    if not results:
        raise ConfigError(
            f"{place}: no results in {place / 'results'}; run the lab first, or name its folder"
        )
    return sorted(
        results,
        key=lambda one: (
            *(one[key] for key in ("family", "regime", "method")),
            base_of(one),
            one["seed"],
            one.get("lr") or 0.0,
        ),
    )


def _scores_of_base(result: dict[str, Any], bases: dict[str, Any]) -> dict[str, Any]:
    name = f"{result['family']} {base_of(result)}"
    return {"base_scores": bases[name]} if name in bases else {}


def selected(results: Results, **wanted: list[str] | None) -> Results:
    """Those whose family, regime, base or seed is among the wanted ones; None is any. Raises
    ConfigError where none is left."""
    chosen = [
        one
        for one in results
        if all(
            names is None or (base_of(one) if key == "base" else str(one[key])) in names
            for key, names in wanted.items()
        )
    ]
    if not chosen:
        raise ConfigError(
            f"no results of {', '.join(f'{key} {names}' for key, names in wanted.items() if names)}"
        )
    return chosen


def write(
    folder: Path,
    results: Results,
    fixed: list[str],
    shown: list[str] | None = None,
    tune_on: Sequence[str] = (),
) -> None:
    """Leave results.json, results.csv, results.md and the plots in the folder, and print where.
    `fixed` are the methods of the oracle; the tables show the methods `shown`, or all of them, and
    where the first of `shown` is behind the others. Of several learning rates they show the one
    that scores.tuned chooses for each method."""
    folder.mkdir(parents=True, exist_ok=True)
    _json(folder / "results.json", results)
    results, rates = tuned(results, [*tune_on])
    of_metric = {
        metric: scores(results, metric) for metric in (*METRICS, *MORE, "diversity", "train_mean_p")
    }
    for metric in METRICS:
        for cell, value in of_other_bases(results, metric, fixed).items():
            of_metric[metric][cell][OTHERS] = value
    _csv(folder / "results.csv", of_metric, fixed)
    families = list(dict.fromkeys(one["family"] for one in results))
    groups = [families, *([f] for f in families)] if len(families) > 1 else [families]
    lines = [*_head(results), *tables.rates(rates, [*tune_on])]
    for group in groups:
        lines += tables.summary(group, of_metric, fixed, shown)
    if shown is not None:
        lines += tables.behind(results, shown[0], shown[1:])
    lines += tables.bases(results)
    for family in families:
        lines += tables.inversion(family, of_metric)
    for metric, name in (METRICS | MORE).items():
        best = fixed if metric in METRICS else []
        for family in families:
            rows = tables.of_scores(family, of_metric[metric], best, shown)
            lines += ["", f"## {family}, {name}", "", *rows] if rows else []
    for metric, title in {
        "diversity": "Distinct right answers in 8 samples, where several are right",
        "train_mean_p": "Mean p of the training targets, noise included (Eq. 5): of the base "
        "model, and after training",
    }.items():
        if of_metric[metric]:
            lines += ["", f"## {title}", ""]
            for family in families:
                lines += [*tables.of_scores(family, of_metric[metric], [], shown), ""]
    lines += tables.seconds(results)
    (folder / "results.md").write_text("\n".join(lines) + "\n")
    made = plots.write(
        folder, results, of_metric, {metric: gaps(of_metric[metric], fixed) for metric in METRICS}
    )
    print("\n".join(tables.summary(families, of_metric, fixed, shown)))
    print(
        f"\n{folder}/results.md, results.csv, results.json, {', '.join(path.name for path in made)}"
    )


def _head(results: Results) -> list[str]:
    commits = sorted({one["commit"] for one in results})
    seconds = sum(one.get("cpu_seconds", one.get("seconds", 0.0)) for one in results)
    fast = sum(bool(one.get("fast")) for one in results)
    stacked = f" ({fast:,} of them stacked, --fast)" if fast else ""
    return [
        "# The continuum lab",
        "",
        f"{len(results):,} runs{stacked}, {seconds / 3600:.1f} hours of runs, code at commit "
        f"{', '.join(commits)}. Exact match, mean ± standard "
        "error over bases and seeds. The oracle is the best fixed alpha of each row; a gap is what "
        f"a method lacks to it, in points. `{OTHERS}` is who takes for each base the fixed alpha "
        "that is best from the other bases.",
    ]


def _json(path: Path, results: Results) -> None:
    runs = [
        {k: v for k, v in one.items() if k not in ("curves", "keys", "base_scores")}
        for one in results
    ]
    bases = {
        f"{one['family']} {base_of(one)}": one["base_scores"]
        for one in results
        if "base_scores" in one
    }
    content = {"environment": environment(), "bases": bases, "runs": runs}
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def _csv(path: Path, of_metric: dict[str, Scores], fixed: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "family",
                "regime",
                "source",
                "strength",
                "metric",
                "method",
                "mean",
                "standard_error",
                "runs",
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
                        value.runs,
                        best,
                    ]
                    writer.writerow([*row, gap if gap is None else round(gap, 3)])
