"""The quick start's results: printed, written as Markdown, CSV and JSON, and plotted."""

import csv
import json
import os
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from adaptsft.drawing import COLOURS, canvas, save
from benchmarks.lab.report import METRICS, score, table
from benchmarks.lab.runs import UNTOUCHED

Results = list[dict[str, Any]]  # of benchmarks.lab
PLACES = {
    "ms": "known",
    "mi": "half known",
    "mw": "new",
    "cw": "redefined",
}  # what a regime's name begins with


def line(result: dict[str, Any]) -> str:
    """One finished run."""
    scores = f"greedy {result['greedy']:.2f}  temperature 1 {result['sampled']:.2f}"
    return f"{result['regime']:14} {result['method']:14} seed {result['seed']}   {scores}   {result['seconds']:4.1f} s"


def duration(seconds: float) -> str:
    return (
        f"{int(seconds) // 60} min {int(seconds) % 60:02} s"
        if seconds >= 60
        else f"{seconds:.0f} s"
    )


def write(folder: Path, results: Results) -> None:
    """Print the report and leave results.md, .csv, .json and .png in the folder."""
    from adaptsft.training.environment import environment

    facts, regimes, seeds = (
        environment(),
        _names(results, "regime"),
        sorted({result["seed"] for result in results}),
    )
    header = [
        "objective",
        *(
            f"{_place(regime)}, {'T=1' if mode == 'sampled' else mode}"
            for regime in regimes
            for mode in METRICS
        ),
    ]
    means, every = [header], [header]
    for method in _names(results, "method"):
        cells = [_cell(results, regime, method, mode) for regime in regimes for mode in METRICS]
        label = "(untouched)" if method == UNTOUCHED else method
        means.append([label, *(str(score(values)) for values in cells)])
        every.append([label, *(" ".join(f"{value:.2f}" for value in values) for values in cells)])
    over = f"mean ± standard error of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    lines = [f"Exact match on held-out questions, {over}:", "", *table(means), ""]
    lines += [
        f"Every seed ({', '.join(map(str, seeds))}):",
        "",
        *table(every),
        "",
        *_reading(results, regimes),
    ]
    text = "\n".join(lines)
    samples = "\n".join(_samples(results, regimes, seeds[0]))
    print(f"\n[3/3] results\n\n{text}\n\n{samples}\n\n{_next_steps(folder, results[-1])}")

    scalars = [
        {key: value for key, value in result.items() if not isinstance(value, dict)}
        for result in results
    ]
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, scalars[0])
        writer.writeheader()
        writer.writerows(scalars)
    (folder / "results.json").write_text(
        json.dumps({"environment": facts, "runs": scalars}, indent=1)
    )
    versions = ", ".join(
        f"{name} {version}" for name, version in facts["versions"].items() if version
    )
    made = f"Made by `{facts['command']}` on {facts['machine']['platform']}, {facts['machine']['cpus']} CPUs, with {versions}."
    (folder / "results.md").write_text(f"# Quick start\n\n{text}\n\n{made}\n")
    plot(
        folder / "results.png",
        [result for result in results if result["method"] != UNTOUCHED],
        regimes,
    )


def _names(results: Results, key: str) -> list[str]:
    return list(dict.fromkeys(result[key] for result in results))


def _place(regime: str) -> str:
    return PLACES.get(regime.split("_")[0], regime)


def _cell(results: Results, regime: str, method: str, mode: str) -> list[float]:
    """The exact match of each seed, in the order of the seeds."""
    chosen = [
        result for result in results if (result["regime"], result["method"]) == (regime, method)
    ]
    return [result[mode] for result in sorted(chosen, key=lambda result: result["seed"])]


def _reading(results: Results, regimes: list[str]) -> list[str]:
    places = {regime: _cell(results, regime, UNTOUCHED, "train_mean_p")[0] for regime in regimes}
    return [
        *(
            f"{_place(regime)}: {regime}, whose training targets have a mean p of {p:.2f} before fine-tuning."
            for regime, p in places.items()
        ),
        "T=1 samples from the model as it is, and so shows what it has taken from wrong labels. A model that has learned labels of which",
        "30 % of the characters are wrong, noise and all, writes six right ones with a probability of 0.7^6 = 0.12.",
        "One tiny model, few seeds and a short budget: this shows how the objectives differ, not which one is best for you.",
    ]


def _samples(results: Results, regimes: list[str], seed: int) -> list[str]:
    """What each objective's first seed writes for one held-out question of every regime."""
    found = {
        (result["regime"], result["method"]): next(iter(result["parts"].values()))
        for result in results
        if result["seed"] == seed
    }
    rows = [
        [
            f"one question, seed {seed}",
            *(f"{_place(regime)} {mode}" for regime in regimes for mode in ("greedy", "T=1")),
        ]
    ]
    for method in _names(results, "method"):
        rows.append(
            [
                method,
                *(
                    found[regime, method]["examples"][mode]
                    for regime in regimes
                    for mode in METRICS
                ),
            ]
        )
    return table(rows)


def _next_steps(folder: Path, last: dict[str, Any]) -> str:
    python = (
        os.path.relpath(sys.executable)
        if Path(sys.executable).is_relative_to(Path.cwd())
        else "python"
    )
    quickstart = shlex.join([python, "-m", "benchmarks.lab.quickstart", *sys.argv[1:]])
    run = folder / "runs" / last["family"] / last["regime"] / f"{last['method']}-{last['seed']}"
    models = f"runs/{last['family']}/{last['regime']}/"
    question = next(iter(last["parts"].values()))["examples"]["greedy"].split("=")[0] + "="
    return "\n".join(
        [
            f"{folder}/",
            "  results.png                  the same as a picture, with mean p over the runs",
            "  results.md, .csv, .json      the tables, every run, machine and versions",
            f"  {models:28} the models, a Hugging Face folder in final/ of each, and their configurations",
            "",
            "Try next",
            f"  {python} -m adaptsft.chat {run} --prompt {shlex.quote(question)} --temperature 1",
            f"  {python} -m adaptsft.report {run.parent}/*-{last['seed']} --out {folder}   ({folder}/report.html: a page about these runs)",
            f"  {quickstart} objectives.deft.objective.name=deft   (runs only what is missing)",
            f"  {quickstart} 'regimes=[ms_clean, mw_clean]'",
            f"  {python} -m adaptsft.train --help   (your own model and data)",
        ]
    )


def plot(path: Path, results: Results, regimes: list[str]) -> None:
    """Above, exact match (bars: mean, dots: seeds); below, mean p of the training targets over the run, and alpha where it moves."""
    methods = _names(results, "method")
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    figure, axes = canvas(2, len(regimes), (5, 3.5))
    for (above, below), regime in zip(axes.T, regimes, strict=True):
        for m, mode in enumerate(METRICS):
            for i, method in enumerate(methods):
                values, x = _cell(results, regime, method, mode), m * (len(methods) + 1) + i
                above.bar(
                    x,
                    statistics.mean(values),
                    color=colours[method],
                    label=method if m == 0 else None,
                    width=0.8,
                )
                above.plot(
                    [x] * len(values), values, "o", color="black", markersize=3, clip_on=False
                )
        above.set_xticks(
            [m * (len(methods) + 1) + (len(methods) - 1) / 2 for m in (0, 1)],
            list(METRICS.values()),
        )
        above.set(
            title=f"{_place(regime)} to the model ({regime})", ylabel="exact match", ylim=(0, 1)
        )
        first = min(result["seed"] for result in results)
        for result in results:
            if result["regime"] == regime:
                curves, colour = result["curves"], colours[result["method"]]
                below.plot(curves["step"], curves["mean_p"], color=colour, linewidth=1)
                if result["seed"] == first and min(curves["alpha"]) < max(curves["alpha"]):
                    below.plot(
                        curves["step"],
                        curves["alpha"],
                        "--",
                        color=colour,
                        linewidth=1,
                        label=f"alpha of {result['method']}",
                    )
                    below.legend(loc="lower right", frameon=False)
        below.set(xlabel="step", ylabel="mean p of the training targets")
        below.set_ylim(bottom=0)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False
    )
    save(figure, path)
