"""The quick start's results: as text, Markdown, CSV and JSON, and plotted."""

import csv
import json
import os
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from adaptsft.drawing import COLOURS, canvas, save
from adaptsft.training.environment import environment
from benchmarks.lab.runs import UNTOUCHED
from benchmarks.lab.scores import METRICS, base_of, score
from benchmarks.lab.tables import table

Results = list[dict[str, Any]]  # of benchmarks.lab
# what a regime's name begins with -> what the model knows of it
PLACES = {"ms": "known", "mi": "half known", "mw": "new", "cw": "redefined"}


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"


def write(folder: Path, results: Results) -> str:
    """Leave results.md, .csv, .json and .png in the folder; returns the report for the terminal."""
    facts, regimes = environment(), _names(results, "regime")
    seeds = sorted({result["seed"] for result in results})
    text = "\n".join([*_tables(results, regimes, seeds), "", *_reading(results, regimes)])
    scalars = [
        {key: value for key, value in result.items() if not isinstance(value, dict)}
        for result in results
    ]
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, scalars[0])
        writer.writeheader()
        writer.writerows(scalars)
    content = {"environment": facts, "runs": scalars}
    (folder / "results.json").write_text(json.dumps(content, indent=1))
    versions = [f"{name} {version}" for name, version in facts["versions"].items() if version]
    machine = f"{facts['machine']['platform']}, {facts['machine']['cpus']} CPUs"
    made = f"Made by `{facts['command']}` on {machine}, with {', '.join(versions)}."
    (folder / "results.md").write_text(f"# Quick start\n\n{text}\n\n{made}\n")
    trained = [result for result in results if result["method"] != UNTOUCHED]
    plot(folder / "results.png", trained, regimes)
    samples = "\n".join(_samples(results, regimes, seeds[0]))
    return f"{text}\n\n{samples}\n\n{_next_steps(folder, results[-1])}"


def _tables(results: Results, regimes: list[str], seeds: list[int]) -> list[str]:
    """Means over the seeds, and every seed."""
    titles = {mode: "T=1" if mode == "sampled" else mode for mode in METRICS}
    columns = [f"{_place(regime)}, {title}" for regime in regimes for title in titles.values()]
    means, every = [["objective", *columns]], [["objective", *columns]]
    for method in _names(results, "method"):
        cells = [_cell(results, regime, method, mode) for regime in regimes for mode in METRICS]
        label = "(untouched)" if method == UNTOUCHED else method
        means.append([label, *(str(score(values)) for values in cells)])
        every.append([label, *(" ".join(f"{value:.2f}" for value in values) for values in cells)])
    over = f"mean ± standard error of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    lines = [f"Exact match on held-out questions, {over}:", "", *table(means), ""]
    return [*lines, f"Every seed ({', '.join(map(str, seeds))}):", "", *table(every)]


def _names(results: Results, key: str) -> list[str]:
    return list(dict.fromkeys(result[key] for result in results))


def _place(regime: str) -> str:
    return PLACES.get(regime.split("_")[0], regime)


def _cell(results: Results, regime: str, method: str, mode: str) -> list[float]:
    """The exact match of each seed, in the order of the seeds."""
    place = regime, method
    chosen = [result for result in results if (result["regime"], result["method"]) == place]
    return [result[mode] for result in sorted(chosen, key=lambda result: result["seed"])]


READING = """\
T=1 samples from the model as it is, and so shows what it has learned from wrong labels. A model
that has learned labels of which 30 % of the characters are wrong, noise and all, writes six right
ones with a probability of 0.7^6 = 0.12. One tiny model, few seeds and a short budget: this shows
how the objectives differ, not which one is best for you."""


def _reading(results: Results, regimes: list[str]) -> list[str]:
    lines = []
    for regime in regimes:
        p = _cell(results, regime, UNTOUCHED, "train_mean_p")[0]
        name = f"{_place(regime)}: {regime}"
        lines.append(f"{name}; mean p of its targets before training: {p:.2f}.")
    return [*lines, *READING.splitlines()]


def _samples(results: Results, regimes: list[str], seed: int) -> list[str]:
    """What each objective's first seed writes for one held-out question of every regime."""
    found = {
        (result["regime"], result["method"]): next(iter(result["parts"].values()))
        for result in results
        if result["seed"] == seed
    }
    columns = [f"{_place(regime)} {mode}" for regime in regimes for mode in ("greedy", "T=1")]
    lines = [[f"one question, seed {seed}", *columns]]
    for method in _names(results, "method"):
        examples = [found[regime, method]["examples"] for regime in regimes]
        lines.append([method, *(of[mode] for of in examples for mode in METRICS)])
    return table(lines)


def _next_steps(folder: Path, last: dict[str, Any]) -> str:
    inside = Path(sys.executable).is_relative_to(Path.cwd())
    python = os.path.relpath(sys.executable) if inside else "python"
    quickstart = shlex.join([python, "-m", "benchmarks.lab.quickstart", *sys.argv[1:]])
    models = f"runs/{last['family']}/{last['regime']}/base{base_of(last)}/"
    run = folder / models / f"{last['method']}-{last['seed']}"
    same_seed = f"{run.parent}/*-{last['seed']}"
    question = next(iter(last["parts"].values()))["examples"]["greedy"].split("=")[0] + "="
    prompt = f"--prompt {shlex.quote(question)} --temperature 1"
    return f"""{folder}/
  {"results.png":34} the same as a picture, with mean p over the runs
  {"results.md, .csv, .json":34} the tables, every run, machine and versions
  {models:34} the models: of each its configuration, and a Hugging Face folder final/

Try next
  {python} -m adaptsft.chat {run} {prompt}
  {python} -m adaptsft.report {same_seed} --out {folder}   (a page about these runs)
  {quickstart} objectives.deft.objective.name=deft   (runs only what is missing)
  {quickstart} 'regimes=[ms_clean, mw_clean]'
  {python} -m adaptsft.train --help   (your own model and data)"""


def plot(path: Path, results: Results, regimes: list[str]) -> None:
    """Above, exact match (bars: mean, dots: seeds); below, mean p of the training targets over the
    run, and alpha where it moves."""
    methods = _names(results, "method")
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    figure, axes = canvas(2, len(regimes), (5, 3.5))
    for (above, below), regime in zip(axes.T, regimes, strict=True):
        _bars(above, results, regime, colours)
        _curves(below, [result for result in results if result["regime"] == regime], colours)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=6, frameon=False)
    save(figure, path)


def _bars(axis: Any, results: Results, regime: str, colours: dict[str, str]) -> None:
    width = len(colours) + 1  # of a group: a bar per method, and a gap
    for m, mode in enumerate(METRICS):
        for i, (method, colour) in enumerate(colours.items()):
            values, x = _cell(results, regime, method, mode), m * width + i
            label = method if m == 0 else None
            axis.bar(x, statistics.mean(values), color=colour, label=label, width=0.8)
            dots = {"color": "black", "markersize": 3, "clip_on": False}
            axis.plot([x] * len(values), values, "o", **dots)
    middles = [m * width + (len(colours) - 1) / 2 for m in (0, 1)]
    axis.set_xticks(middles, list(METRICS.values()))
    title = f"{_place(regime)} to the model ({regime})"
    axis.set(title=title, ylabel="exact match", ylim=(0, 1))


def _curves(axis: Any, results: Results, colours: dict[str, str]) -> None:
    first = min(result["seed"] for result in results)
    for result in results:
        curves, look = result["curves"], {"color": colours[result["method"]], "linewidth": 1}
        axis.plot(curves["step"], curves["mean_p"], **look)
        if result["seed"] == first and min(curves["alpha"]) < max(curves["alpha"]):
            label = f"alpha of {result['method']}"
            axis.plot(curves["step"], curves["alpha"], "--", label=label, **look)
            axis.legend(loc="lower right", frameon=False)
    axis.set(xlabel="step", ylabel="mean p of the training targets")
    axis.set_ylim(bottom=0)
