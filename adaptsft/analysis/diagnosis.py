"""A diagnosis as text, from the content of base_stats.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptsft.analysis.continuum import PLACES, REFERENCES, borders, cautions, place_of

Source = dict[str, Any]

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
    sources: dict[str, Source] = content["sources"]
    model, sample = content["model"], content["sample"]
    sampled = "every example"
    if sample != "all":
        sampled = f"{sample:,} examples of each source, drawn by seed"
    rounded = (
        " of weights rounded to bf16 (model.param_dtype=bf16)" if model["bf16_masters"] else ""
    )
    parts = [
        f"# Diagnosis of {model['path']}",
        f"Measured on {sampled}, in {model['compute_dtype']}{rounded}, before any training. "
        "Brackets: 95 % intervals for the whole data set, from the spread between examples (not "
        "tokens: those of an example are not independent); [?] where the sample shows no spread. "
        "No brackets: every example was measured.",
        _figures(sources),
        *_precision(sources),
        "## Recommended",
        _recommended(sources, out),
        *(
            f"**{name}.** {caution}"
            for name, source in sources.items()
            for caution in cautions(source)
        ),
        "## The place on the continuum",
        f"From arXiv:2510.00526, Tables 6 and 7; the borders, mean p = {borders()[0]:.3g} and "
        f"{borders()[1]:.3g}, are half-way between the nearest of its models.",
        _continuum(sources),
        "## Quantiles of p",
        "A threshold `objective.name=threshold objective.lower=…` at a quantile leaves out that "
        "share of the tokens; `objective.lower_quantile=0.1` finds it by itself.",
        _quantiles(sources),
        "## Calibration on this data",
        "Is the likeliest token right as often as its probability says? Confidence: its mean "
        "probability; right: how often it is the target; ECE: their mean distance over 15 equal "
        "steps of probability. NLL above entropy (first table) says the same of the whole "
        "distribution: the model expects less surprise than it gets.",
        _calibration(sources),
    ]
    return "\n\n".join(parts) + "\n"


def _figures(sources: dict[str, Source]) -> str:
    def row(label: str, cell: Callable[[Source], str]) -> list[str]:
        return [label, *map(cell, sources.values())]

    figures = [row(label, lambda s, key=key: _figure(s, key)) for label, key in FIGURES]
    return _table(
        [
            ["", *sources],
            row("examples measured", lambda s: f"{s['measured']:,} of {s['examples']:,}"),
            row("tokens", lambda s: f"{s['tokens']:,}"),
            *figures,
            row("median sequence, nats per token", lambda s: f"{s['sequence_nll']:.3f}"),
            row("place", _place),
        ]
    )


def _figure(source: Source, key: str | None) -> str:
    if key is None:
        return f"{source['quantiles']['0.5']:.3f}"
    if source["measured"] == source["examples"]:
        return f"{source[key]:.3f}"
    bounds = source[f"{key}_interval"]
    interval = "[?]" if bounds is None else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"
    return f"{source[key]:.3f} {interval}"


def _place(source: Source) -> str:
    """The place, or the places that the interval of mean p leaves open."""
    low, high = source["mean_p_interval"] or [0.0, 1.0]
    possible = {place_of(low), source["place"], place_of(high)}
    return " or ".join(place for place in PLACES if place in possible)


def _precision(sources: dict[str, Source]) -> list[str]:
    wanted = [source["examples_for_precision"] for source in sources.values()]
    wanted = [count for count in wanted if count]
    return [f"For ± 0.01 on mean p of every source: `sample={max(wanted)}`."] if wanted else []


def _recommended(sources: dict[str, Source], out: Path) -> str:
    lines = [
        "```",
        f"controller.name=auto controller.base_stats={out / 'base_stats.json'}",
        "```",
        "",
        "for every source, wherever it stands: mean p says how strong the base model is, not "
        "whether it is right where it disagrees with the data, and a fixed objective that is "
        "right at one place fails at another. `auto` starts from these statistics and continues "
        "from what training shows. What it was measured to do, and on which models: "
        "docs/results.md.",
        "",
        "To compare with, the fixed objective that did best at each place in arXiv:2510.00526 "
        "(base models, not instruction-tuned ones):",
        "",
    ]
    for name, source in sources.items():
        place = PLACES[source["place"]]
        lines.append(
            f"- **{name}**, mean p {source['mean_p']:.2f}, {place.meaning}: "
            f"`{place.objective}`. {place.evidence}."
        )
    if len({PLACES[source["place"]].objective for source in sources.values()}) > 1:
        lines += [
            "",
            "The sources ask for different objectives, and a fixed one is the same for all: that "
            "is what a controller is for.",
        ]
    return "\n".join(lines)


def _continuum(sources: dict[str, Source]) -> str:
    rows = [["place", "model", "data", "mean p", "p > .55"]]
    for r in REFERENCES:
        share = f"{r.above_055:.3f}" if r.above_055 else ""
        rows.append([r.place, r.model, r.data, f"{r.mean_p:.2f}", share])
    for name, s in sources.items():
        figures = [f"{s['mean_p']:.2f}", f"{s['above_0.55']:.3f}"]
        rows.append([s["place"], "**this model**", name, *figures])
    return _table(rows)


def _quantiles(sources: dict[str, Source]) -> str:
    rows = [["quantile", *sources]]
    for q in next(iter(sources.values()))["quantiles"]:
        rows.append([q, *(f"{source['quantiles'][q]:.4g}" for source in sources.values())])
    return _table(rows)


def _calibration(sources: dict[str, Source]) -> str:
    rows = [["source", "ECE", "confidence - right"]]
    for name, source in sources.items():
        rows.append([name, f"{source['ece']:.3f}", f"{source['overconfidence']:+.3f}"])
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    """Markdown that is aligned for a terminal too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"| {' | '.join(cells)} |")
    ruler = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([lines[0], f"|{ruler}|", *lines[1:]])
