"""A diagnosis as text and as a picture, from the content of base_stats.json."""

from pathlib import Path
from typing import Any

from adaptsft.analysis.continuum import PLACES, REFERENCES, borders, cautions, place_of
from adaptsft.analysis.places import COLOURS, bands
from adaptsft.statistics.step import BINS, p_of_bin_edges

SHOWN = 6  # sources in the picture, those with the most tokens

FIGURES = (
    ("mean p (Eq. 5)", "mean_p"),
    ("median p", None),
    ("tokens with p > .55", "above_0.55"),
    ("tokens with p > .5", "above_0.5"),
    ("tokens with p < .2", "below_0.2"),
    ("target is the likeliest token", "top1"),
    ("another token has p > .5", "conflict"),
    ("NLL, nats per token", "nll"),
    ("entropy, nats per token", "entropy"),
)


def markdown(content: dict[str, Any], out: Path) -> str:
    """The report. `out` is the folder that holds base_stats.json."""
    sources: dict[str, dict[str, Any]] = content["sources"]
    quantiles = list(next(iter(sources.values()))["quantiles"])
    sampled = (
        "every example"
        if content["sample"] == "all"
        else f"{content['sample']:,} examples of each source, drawn by seed"
    )
    rounded = (
        " of weights rounded to bf16 (model.param_dtype=bf16)"
        if content["model"]["bf16_masters"]
        else ""
    )
    parts = [
        f"# Diagnosis of {content['model']['path']}",
        f"Measured on {sampled}, in {content['model']['compute_dtype']}{rounded}, before any training. Brackets: 95 % intervals for the "
        "whole data set, from the spread between examples (not tokens: those of an example hang together); [?] where the sample shows no "
        "spread. No brackets: every example was measured.",
        _table(
            [
                ["", *sources],
                [
                    "examples measured",
                    *(
                        f"{source['measured']:,} of {source['examples']:,}"
                        for source in sources.values()
                    ),
                ],
                ["tokens", *(f"{source['tokens']:,}" for source in sources.values())],
                *(
                    [label, *(_figure(source, key) for source in sources.values())]
                    for label, key in FIGURES
                ),
                [
                    "median sequence, nats per token",
                    *(f"{source['sequence_nll']:.3f}" for source in sources.values()),
                ],
                ["place", *(_place(source) for source in sources.values())],
            ]
        ),
        *_precision(sources),
        "## Recommended",
        _recommended(sources, out),
        *(
            f"**{name}.** {caution}"
            for name, source in sources.items()
            for caution in cautions(source)
        ),
        "## The place on the continuum",
        f"From arXiv:2510.00526, Tables 6 and 7; the borders, mean p = {borders()[0]:.3g} and {borders()[1]:.3g}, are half-way between the "
        "nearest of its models.",
        _table(
            [
                ["place", "model", "data", "mean p", "p > .55"],
                *(
                    [
                        r.place,
                        r.model,
                        r.data,
                        f"{r.mean_p:.2f}",
                        f"{r.above_055:.3f}" if r.above_055 else "",
                    ]
                    for r in REFERENCES
                ),
                *(
                    [
                        s["place"],
                        "**this model**",
                        name,
                        f"{s['mean_p']:.2f}",
                        f"{s['above_0.55']:.3f}",
                    ]
                    for name, s in sources.items()
                ),
            ]
        ),
        "## Quantiles of p",
        "A threshold `objective.name=threshold objective.lower=…` at a quantile leaves out that share of the tokens; "
        "`objective.lower_quantile=0.1` finds it by itself.",
        _table(
            [
                ["quantile", *sources],
                *(
                    [q, *(f"{source['quantiles'][q]:.4g}" for source in sources.values())]
                    for q in quantiles
                ),
            ]
        ),
        "## Calibration on this data",
        "Is the likeliest token right as often as its probability says? Confidence: its mean probability; right: how often it is the "
        "target; ECE: their mean distance over 15 equal steps of probability. NLL above entropy (first table) says the same of the whole "
        "distribution: the model expects less surprise than it gets.",
        _table(
            [
                ["source", "ECE", "confidence - right"],
                *(
                    [name, f"{source['ece']:.3f}", f"{source['overconfidence']:+.3f}"]
                    for name, source in sources.items()
                ),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _figure(source: dict[str, Any], key: str | None) -> str:
    if key is None:
        return f"{source['quantiles']['0.5']:.3f}"
    if source["measured"] == source["examples"]:
        return f"{source[key]:.3f}"
    bounds = source[f"{key}_interval"]
    return f"{source[key]:.3f} " + (
        "[?]" if bounds is None else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"
    )


def _place(source: dict[str, Any]) -> str:
    """The place, or the places that the interval of mean p leaves open."""
    ends = source["mean_p_interval"] or [0.0, 1.0]
    found = [
        place
        for place in PLACES
        if place in {place_of(ends[0]), source["place"], place_of(ends[1])}
    ]
    return " or ".join(found)


def _precision(sources: dict[str, dict[str, Any]]) -> list[str]:
    wanted = [
        source["examples_for_precision"]
        for source in sources.values()
        if source["examples_for_precision"]
    ]
    return [f"For ± 0.01 on mean p of every source: `sample={max(wanted)}`."] if wanted else []


def _recommended(sources: dict[str, dict[str, Any]], out: Path) -> str:
    lines = [
        "```",
        f"controller.name=auto controller.base_stats={out / 'base_stats.json'}",
        "```",
        "",
        "for every source, wherever it stands: mean p says how strong the base model is, not whether it is right where it disagrees with "
        "the data, and a fixed objective that is right at one place fails at another. `auto` starts from these statistics and goes on from "
        "what training shows. What it was measured to do, and on which models: docs/results.md.",
        "",
        "To compare with, the fixed objective that did best at each place in arXiv:2510.00526 (base models, not instruction-tuned ones):",
        "",
    ]
    for name, source in sources.items():
        place = PLACES[source["place"]]
        lines.append(
            f"- **{name}**, mean p {source['mean_p']:.2f}, {place.meaning}: `{place.objective}`. {place.evidence}."
        )
    if len({PLACES[source["place"]].objective for source in sources.values()}) > 1:
        lines += [
            "",
            "The sources ask for different objectives, and a fixed one is the same for all: that is what a controller is for.",
        ]
    return "\n".join(lines)


def _table(rows: list[list[str]]) -> str:
    """Markdown that is aligned for a terminal too."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join(
        [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
    )


def plot(path: Path, sources: dict[str, dict[str, Any]]) -> None:
    """Above, mean p of every source beside the paper's models; below, for each source, the histogram of p and the reliability diagram."""
    from matplotlib.figure import Figure

    shown = sorted(sources, key=lambda name: -sources[name]["tokens"])[:SHOWN]
    figure = Figure(figsize=(10, 1.6 + 0.25 * len(shown) + 2.6 * len(shown)), layout="constrained")
    grid = figure.add_gridspec(
        1 + len(shown),
        2,
        width_ratios=[2, 1],
        height_ratios=[0.7 + 0.12 * len(shown)] + [1.0] * len(shown),
    )
    _strip(figure.add_subplot(grid[0, :]), sources, shown)
    for row, name in enumerate(shown, 1):
        _histogram(figure.add_subplot(grid[row, 0]), name, sources[name])
        _reliability(figure.add_subplot(grid[row, 1]), sources[name])
    figure.savefig(path, dpi=150, format="png")


def _strip(axis: Any, sources: dict[str, dict[str, Any]], shown: list[str]) -> None:
    bands(axis, len(shown) + 0.3)
    for reference in REFERENCES:
        axis.plot(reference.mean_p, len(shown), "|", color=COLOURS[reference.place], markersize=12)
    for row, name in enumerate(reversed(shown)):
        source = sources[name]
        begin, end = source["mean_p_interval"] or [source["mean_p"]] * 2
        axis.plot([begin, end], [row, row], color="black", linewidth=2)
        axis.plot(
            source["mean_p"], row, "o", color=COLOURS[source["place"]], markeredgecolor="black"
        )
    axis.set_yticks(range(len(shown) + 1), [*reversed(shown), "arXiv:2510.00526"])
    axis.set(
        xlim=(0, 1),
        ylim=(-0.6, len(shown) + 1.1),
        xlabel="mean p of the targets under the base model",
    )


def _histogram(axis: Any, name: str, source: dict[str, Any]) -> None:
    """Equal steps of log-odds, so that both ends are seen; four bins of the file in a bar."""
    counts = [sum(source["histogram"][i : i + 4]) / source["tokens"] for i in range(0, BINS, 4)]
    middles = [index + 0.5 for index in range(len(counts))]
    edges = p_of_bin_edges()[::4]

    def position(p: float) -> float:
        return next(
            i - (edges[i] - p) / (edges[i] - edges[i - 1])
            for i in range(1, len(edges))
            if edges[i] >= p
        )

    colours = ["MW" if edge <= 0.2 else "MI" if edge <= 0.55 else "MS" for edge in edges[1:]]
    axis.bar(middles, counts, width=1.0, color=[COLOURS[colour] for colour in colours])
    for value in (0.2, 0.55):
        axis.axvline(position(value), color="black", linewidth=0.8, linestyle=":")
    ticks = (1e-6, 1e-4, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.9999, 0.999999)
    axis.set_xticks([position(tick) for tick in ticks], [f"{tick:g}" for tick in ticks], fontsize=8)
    axis.set_title(
        f"{name}: {source['below_0.2']:.0%} of the tokens below .2, {source['above_0.55']:.0%} above .55",
        fontsize=9,
    )
    axis.set(
        xlabel="p of the target (equal steps of log-odds)",
        ylabel="share of tokens",
        xlim=(0, len(counts)),
    )


def _reliability(axis: Any, source: dict[str, Any]) -> None:
    counts, confidence, right = (
        source["reliability"][key] for key in ("tokens", "confidence", "right")
    )
    seen = [index for index, count in enumerate(counts) if count]
    axis.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    axis.scatter(
        [confidence[i] / counts[i] for i in seen],
        [right[i] / counts[i] for i in seen],
        s=[6 + 200 * counts[i] / sum(counts) for i in seen],
        color="#444444",
        clip_on=False,
    )
    axis.set_title(f"ECE {source['ece']:.3f}", fontsize=9)
    axis.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="p of the likeliest token",
        ylabel="how often it is the target",
    )
