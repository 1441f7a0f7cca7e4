"""The charts of a report, from what the runs logged."""

import math
from collections.abc import Sequence

import numpy as np

from adaptsft.analysis.continuum import PLACES, REFERENCES, borders, place_of
from adaptsft.analysis.report.changes import Change, changes
from adaptsft.analysis.report.charts import Band, Chart, Line, Ticks, grouped
from adaptsft.analysis.report.folder import SOURCES, Row, RunFolder, histogram, mapping, number
from adaptsft.analysis.report.summary import method
from adaptsft.statistics.step import LOGIT_RANGE
from adaptsft.training.metrics import BARS

COLUMNS = 60  # of a heatmap over the steps
EMPTY = 1e-3  # bars with a smaller share of the tokens everywhere are cut off at both ends
# p at the ticks of a histogram
ANCHORS = (1e-9, 1e-7, 1e-5, 1e-3, 0.05, 0.5, 0.95, 0.999, 0.99999, 1 - 1e-7, 1 - 1e-9)

CURVES = {  # column of metrics.jsonl: title
    "loss": "Loss of the objective",
    "nll": "Ungated NLL, nats per token",
    "mean_p": "Mean p of the targets",
    "top1": "Target is the likeliest token, share",
    "below_0.2": "Tokens with p < .2, share",
    "above_0.55": "Tokens with p > .55, share",
    "entropy": "Entropy on the targets, nats per token",
    "weight": "Mean token weight of the objective",
    "grad_norm": "Gradient norm before clipping",
    "lr": "Learning rate",
    # of a mixture of experts
    "router_aux_loss": "Load-balancing loss of the routers",
    "expert_load_max": "Largest load of an expert, 1 is an even share",
    "expert_load_entropy": "Entropy of the experts' loads, share of log E",
    "tokens_per_second_per_rank": "Tokens per second and rank",
}
# shown where they move, or differ between runs
STATE = {
    "alpha": "alpha",
    "floor": "Floor of the token weight",
    "lower": "Lower threshold",
    "upper": "Upper threshold",
    "lr_scale": "Factor of the learning rate",
}
# what is logged of an objective that does not read them
UNUSED = {"alpha": 0.0, "floor": 0.0, "lower": 0.0, "upper": 1.0, "lr_scale": 1.0}
LOGARITHMIC = ("grad_norm",)


def training(runs: Sequence[RunFolder]) -> list[Chart]:
    charts = [_over_steps(runs, key, title) for key, title in CURVES.items()]
    charts += [_over_steps(runs, key, title) for key, title in STATE.items() if _differs(runs, key)]
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = [
            grouped(i, run.label, run.column("step"), run.column("kept") / run.column("tokens"))
            for i, run in enumerate(runs)
        ]
    if any(value < 1 for line in kept for value in line.y):
        charts.append(Chart("kept", "Tokens kept by the threshold, share", kept))
    if len({method(run) for run in runs}) > 1:
        loss, *_ = charts
        loss.note = "Another scale for every objective: look at the shape, not at which is lower."
    return [chart for chart in charts if _drawn(chart)]


def per_source(runs: Sequence[RunFolder]) -> tuple[list[Chart], int]:
    """NLL, mean p, and what moves, of every source; and how many sources are left out."""
    names = list(dict.fromkeys(name for run in runs for name in run.sources))
    charts = []
    for number_, name in enumerate(names[:SOURCES]):
        for key, title in {**{key: CURVES[key] for key in ("nll", "mean_p")}, **STATE}.items():
            if key in CURVES or _differs(runs, key, name):
                charts.append(
                    _over_steps(runs, key, f"{title}: {name}", name, f"source{number_ + 1}_{key}")
                )
    return [chart for chart in charts if _drawn(chart)], max(0, len(names) - SOURCES)


def held_out(runs: Sequence[RunFolder]) -> list[Chart]:
    charts = []
    for key, title in (
        ("nll", "Held-out NLL, nats per token"),
        ("mean_p", "Held-out mean p"),
        ("loss", "Held-out loss"),
    ):
        lines = [
            _points(i, run.label, [(row["step"], number(row.get(key))) for row in run.held_out])
            for i, run in enumerate(runs)
        ]
        charts.append(Chart(f"held_out_{key}", title, lines))
    names = [name for run in runs for row in run.held_out for name in mapping(row.get("sources"))]
    for number_, name in enumerate(list(dict.fromkeys(names))[:SOURCES]):
        lines = []
        for i, run in enumerate(runs):
            rows = [(row["step"], mapping(row.get("sources"))) for row in run.held_out]
            points = [
                (step, number(mapping(sources.get(name)).get("mean_p"))) for step, sources in rows
            ]
            lines.append(_points(i, run.label, points))
        charts.append(Chart(f"held_out_source{number_ + 1}", f"Held-out mean p: {name}", lines))
    return [chart for chart in charts if _drawn(chart)]


def tasks(runs: Sequence[RunFolder]) -> list[Chart]:
    """A chart of every metric of every task that was evaluated in training."""
    pairs = [
        (task, metric)
        for run in runs
        for row in run.tasks
        for task, values in mapping(row["tasks"]).items()
        for metric in mapping(values)
    ]
    charts = []
    for number_, (task, metric) in enumerate(dict.fromkeys(pairs)):
        found = [
            [
                (row["step"], number(mapping(mapping(row["tasks"]).get(task)).get(metric)))
                for row in run.tasks
            ]
            for run in runs
        ]
        lines = [_points(i, runs[i].label, points) for i, points in enumerate(found)]
        title, limits = f"{task}: {metric}", (0.0, 1.0)
        if metric == "entropy":
            title, limits = f"{task}: entropy of the answers, nats per token", None
        charts.append(Chart(f"task{number_ + 1}", title, lines, y_limits=limits))
    return [chart for chart in charts if _drawn(chart)][: 2 * SOURCES]


def continuum(runs: Sequence[RunFolder]) -> Chart | None:
    """Mean p of every run before (open circle) and after (full), beside the paper's models."""
    found = [(i, changes(run)[0]) for i, run in enumerate(runs) if changes(run)]
    if not found:
        return None
    low, high = borders()
    rows = len(found)
    lines = [
        Line(
            i,
            runs[i].label,
            [change.before["mean_p"], change.after["mean_p"]],
            [rows - place] * 2,
            ends=True,
        )
        for place, (i, change) in enumerate(found)
    ]
    lines.append(
        Line(
            None,
            "arXiv:2510.00526",
            [reference.mean_p for reference in REFERENCES],
            [0.0] * len(REFERENCES),
        )
    )
    words = {place: PLACES[place].meaning.split(":")[0].removeprefix("model-") for place in PLACES}
    return Chart(
        "continuum",
        "Place on the continuum",
        lines,
        note="Mean p before (open circle) and after training. Grey: the base models of "
        "arXiv:2510.00526, Table 6, on its training sets.",
        x_label="mean p of the targets",
        x_limits=(0.0, 1.0),
        y_limits=(-0.6, rows + 0.6),
        y_ticks=[(rows - place, _short(runs[i].label)) for place, (i, _) in enumerate(found)]
        + [(0.0, "the paper")],
        x_ticks=[(value / 10, f"{value / 10:g}") for value in range(0, 11, 2)],
        bands=[
            Band(0.0, low, words["MW"]),
            Band(low, high, words["MI"]),
            Band(high, 1.0, words["MS"]),
        ],
    )


def before_and_after(runs: Sequence[RunFolder]) -> list[Chart]:
    """Histograms of p before and after, of all tokens or of each source; all over the same range of
    p."""
    found = []
    for number_, run in enumerate(runs):
        change = next((change for change in changes(run) if _both(change, None)), None)
        if change is not None:
            names = [name for name in run.sources[:SOURCES] if _both(change, name)]
            found += [
                (number_, i, name, change, [_shares(side) for side in change.of(name)])
                for i, name in enumerate(names or [None])
            ]
    first, last = _used([side for *_, sides in found for side in sides])
    x = list(range(first, last))
    charts = []
    for number_, i, name, change, sides in found:
        before, after = (side[first:last].tolist() for side in sides)
        of = f" of {name}" if name is not None else ""
        charts.append(
            Chart(
                f"p_run{number_ + 1}" + (f"_source{i + 1}" if name is not None else ""),
                f"{runs[number_].label}: p{of}, before and after",
                [
                    Line(None, change.before_label, x, before, area=True),
                    Line(number_, change.after_label, x, after, area=True),
                ],
                note=f"Share of the tokens of {change.basis}. Grey: {change.before_label}; "
                f"colour: {change.after_label}.",
                x_label="p of the target, equal steps of log-odds",
                x_limits=(first - 0.5, last - 0.5),
                x_ticks=_p_ticks(first, last, -0.5),
                run=number_,
            )
        )
    return charts


def heatmaps(runs: Sequence[RunFolder]) -> list[Chart]:
    """Histogram of p over the steps of each run; all over the same range of p."""
    found = []
    for number_, run in enumerate(runs):
        seen = [(row["step"], counts) for row in run.rows if (counts := histogram(row)) is not None]
        if len(seen) > 1:
            steps, counts = zip(*seen, strict=True)
            groups = np.array_split(np.array(counts), min(COLUMNS, len(seen)))
            shares = np.array([group.sum(0) / group.sum() for group in groups])
            found.append((number_, run, (steps[0] - 0.5, steps[-1] + 0.5), shares))
    first, last = _used([column for *_, shares in found for column in shares])
    return [
        Chart(
            f"p_over_time_run{number_ + 1}",
            f"{run.label}: p of the targets over the run",
            [],
            note="Full colour: a fifth of a column's tokens, or more, in one cell.",
            x_limits=span,
            y_limits=(first, last),
            y_ticks=_p_ticks(first, last, 0.0),
            heat=np.sqrt(np.clip(shares[:, first:last].T / 0.2, 0, 1)),
            run=number_,
        )
        for number_, run, span, shares in found
    ]


def _over_steps(
    runs: Sequence[RunFolder], key: str, title: str, source: str | None = None, name: str = ""
) -> Chart:
    lines = [
        grouped(i, run.label, run.column("step"), run.column(key, source))
        for i, run in enumerate(runs)
    ]
    if key in STATE:
        lines = [
            line
            for line in lines
            if any(value != UNUSED[key] for value in line.y if math.isfinite(value))
        ]
    return Chart(name or key, title, lines, log=key in LOGARITHMIC and _wide(lines))


def _points(number_: int, label: str, points: list[tuple[int, float]]) -> Line:
    known = [(step, value) for step, value in points if math.isfinite(value)]
    return Line(number_, label, [step for step, _ in known], [value for _, value in known])


def _drawn(chart: Chart) -> bool:
    return any(math.isfinite(value) for line in chart.lines for value in line.y)


def _differs(runs: Sequence[RunFolder], key: str, source: str | None = None) -> bool:
    values = np.concatenate([run.column(key, source) for run in runs])
    values = values[np.isfinite(values)]
    return len(values) > 0 and float(np.ptp(values)) > 1e-6


def _wide(lines: list[Line]) -> bool:
    """Whether values over more than two powers of ten are to be seen, none of them 0."""
    values = [value for line in lines for value in line.y if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) > 30 * min(values)


def _both(change: Change, source: str | None) -> bool:
    return all(histogram(side) is not None for side in change.of(source))


def _shares(row: Row) -> np.ndarray:
    counts = histogram(row)
    assert counts is not None, "_both"
    return counts / counts.sum()


def _used(shares: list[np.ndarray]) -> tuple[int, int]:
    """First bar and the one after the last that are worth showing; p from .05 to .95 always is."""
    used = np.flatnonzero(np.max(shares, axis=0) >= EMPTY) if shares else np.array([], dtype=int)
    low, high = (_bar(p) for p in (0.05, 0.95))
    return int(min([math.floor(low), *used])), int(max([math.ceil(high), *(used + 1)]))


def _bar(p: float) -> float:
    """Where p is on the axis of the bars: 0 at the first one's left edge, BARS at the last one's
    right edge."""
    low, high = LOGIT_RANGE
    return (math.log(p) - math.log1p(-p) - low) / (high - low) * BARS


def _p_ticks(first: int, last: int, shift: float) -> Ticks:
    def text(p: float) -> str:
        if p < 1e-3:
            return f"{p:.0e}".replace("e-0", "e-")
        return f"1-{1 - p:.0e}".replace("e-0", "e-") if p > 0.9995 else f"{p:g}"

    return [(_bar(p) + shift, text(p)) for p in ANCHORS if first <= _bar(p) <= last]


def _short(label: str, longest: int = 14) -> str:
    return label if len(label) <= longest else "…" + label[1 - longest :]


def place(side: Row) -> str:
    """MW, MI or MS."""
    p = number(side.get("mean_p"))
    return place_of(p) if math.isfinite(p) else "–"
