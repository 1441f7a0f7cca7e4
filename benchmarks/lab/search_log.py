"""The table of a search for a default, from its log of runs:

    python -m benchmarks.lab.search_log benchmarks/results/lab_search_feedback.json 200 4

takes the runs of 200 steps, and of them the regimes that were run for 4 pairs of pretrained model
and seed. Every line is a variant that was run on all of these: its mean and its worst gap to the
best fixed alpha of a row, greedily and at temperature 1, in points; where that is; and its mean gap
to the best variant of the row, which sees who is ahead where no fixed alpha is good.

    python -m benchmarks.lab.search_log LOG.json 200 2 auto_old cap_trust6

compares these variants alone, on the rows that all of them were run on.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lab.tables import table

Cell = tuple[str, str, str, str]  # family, regime, part, metric
HEADER = ["variant", "mean gap", "worst gap", "where", "mean gap to the best variant"]


def means(runs: list[dict[str, Any]], pairs: int) -> dict[Cell, dict[str, float]]:
    """Of each cell, the mean score of the variants that were run for `pairs` pairs or more."""
    found: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for part, scores in run["scores"].items():
            for metric, score in scores.items():
                cell = (run["family"], run["regime"], part, metric)
                found[cell][run["variant"]].append(score)
    enough = {
        cell: {name: float(np.mean(of)) for name, of in each.items() if len(of) >= pairs}
        for cell, each in found.items()
    }
    return {cell: each for cell, each in enough.items() if each}


def shared(
    cells: dict[Cell, dict[str, float]], variants: list[str]
) -> dict[Cell, dict[str, float]]:
    """The rows of a fixed alpha and all these variants, with no other variant."""
    chosen = {}
    for cell, each in cells.items():
        of = {name: v for name, v in each.items() if name in variants or name.startswith("alpha_")}
        if set(variants) <= of.keys() and len(of) > len(variants):
            chosen[cell] = of
    return chosen


def lines(cells: dict[Cell, dict[str, float]]) -> list[list[str]]:
    """A line per variant that has a score in every cell, the smallest mean gap first."""
    names = set.intersection(*(set(each) for each in cells.values()))
    fixed = {name for name in names if name.startswith("alpha_")}
    oracle = np.array([max(each[name] for name in fixed) for each in cells.values()])
    best = np.array([max(each[name] for name in names) for each in cells.values()])
    found = []
    for name in names:
        own = np.array([each[name] for each in cells.values()])
        gaps, where = 100 * np.maximum(0, oracle - own), list(cells)
        worst = " ".join(where[int(gaps.argmax())])
        figures = (
            f"{gaps.mean():.2f}",
            f"{gaps.max():.1f}",
            worst,
            f"{100 * (best - own).mean():.1f}",
        )
        found.append((float(gaps.mean()), [name, *figures]))
    return [line for _, line in sorted(found)]


if __name__ == "__main__":
    path, steps, pairs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    log = json.loads(path.read_text())
    chosen = [run for run in log["runs"] if run["steps"] == steps]
    cells = means(chosen, pairs)
    if sys.argv[4:]:
        cells = shared(cells, sys.argv[4:])
    print(f"{len(chosen)} runs of {steps} steps; {len(cells)} rows\n")
    print("\n".join(table([HEADER, *lines(cells)])))
