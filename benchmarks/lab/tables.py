"""The tables of results.md, in Markdown that is aligned for a terminal too."""

import statistics
from collections import defaultdict

from benchmarks.lab import scores
from benchmarks.lab.runs import UNTOUCHED
from benchmarks.lab.scores import METRICS, OTHERS, Results, Scores, base_of, gaps, oracle


def summary(
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
        if shown is not None and method not in (*shown, *fixed, OTHERS):
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


def behind(results: Results, method: str, others: list[str]) -> list[str]:
    """The rows in which a method is behind one of the others, see scores.behind."""
    by_metric = {metric: scores.behind(results, metric, method, others) for metric in METRICS}
    cells = list(dict.fromkeys(cell for of in by_metric.values() for cell in of))
    rows = [["", *METRICS.values()]]
    rows += [
        [str(cell), *(", ".join(of.get(cell, [])) for of in by_metric.values())] for cell in cells
    ]
    title = f"Where {method} is behind {', '.join(name for name in others if name != method)}"
    line = "By more than 2 points beyond the standard error of the difference (one run has none)."
    return ["", f"## {title}", "", line, "", *(table(rows) if cells else ["Nowhere."])]


# Tables 2 to 4 and 11 of arXiv:2510.00526: its name of an objective, ours
PAPER = {
    "base": UNTOUCHED,
    "-log p": "alpha_0",
    "-log p, p >= .2": "threshold_0.2",
    "-p": "alpha_1",
}


def inversion(family: str, of_metric: dict[str, Scores]) -> list[str]:
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


def of_scores(family: str, found: Scores, fixed: list[str], shown: list[str] | None) -> list[str]:
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


def rates(chosen: dict[str, float], tune_on: list[str]) -> list[str]:
    """The learning rates that were chosen."""
    if not chosen:
        return []
    rows = [["method", "learning rate"], *([method, f"{lr:g}"] for method, lr in chosen.items())]
    return ["", f"## Learning rates, chosen on {', '.join(tune_on)}", "", *table(rows)]


def bases(results: Results) -> list[str]:
    """What every base does of the tasks that it was pretrained on, before any fine-tuning."""
    found = {
        (one["family"], base_of(one)): one["base_scores"] for one in results if "base_scores" in one
    }
    lines = []
    for family in dict.fromkeys(family for family, _ in found):
        of = {base: scores for (name, base), scores in found.items() if name == family}
        tags = list(next(iter(of.values())))
        rows = [["base", *tags]]
        rows += [
            [base, *(f"{by[tag]['greedy']:.2f} / {by[tag]['sampled']:.2f}" for tag in tags)]
            for base, by in of.items()
        ]
        title = f"{family}: the bases on what they were pretrained on, greedy / temperature 1"
        lines += ["", f"## {title}", "", *table(rows)]
    return lines


def seconds(results: Results) -> list[str]:
    """Of a run, training and scoring, by method."""
    methods: dict[str, Results] = defaultdict(list)
    for one in results:
        methods[one["method"]].append(one)
    rows = [["method", "seconds", "of CPU", "runs"]]
    for method, of in sorted(methods.items()):
        taken = [[one[key] for one in of if key in one] for key in ("seconds", "cpu_seconds")]
        means = [f"{statistics.mean(values):.1f}" if values else "" for values in taken]
        rows.append([method, *means, str(len(of))])
    return ["", "## Mean seconds of a run", "", *table(rows)]


def table(rows: list[list[str]]) -> list[str]:
    """The first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
