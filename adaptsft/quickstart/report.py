"""The quick start's results: printed, written as Markdown, CSV and JSON, and plotted."""

import csv
import json
import os
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from adaptsft.quickstart.tasks import LENGTH, TASKS, held_out_words, prompt

Results = list[dict[str, Any]]  # of runs.execute
MODES = ("greedy", "sampled")
COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c")


def line(result: dict[str, Any]) -> str:
    """One finished run."""
    scores = f"greedy {result['greedy']:.2f}  temperature 1 {result['sampled']:.2f}"
    return f"{result['task']:8} {result['label']:14} seed {result['seed']}   {scores}   {result['seconds']:4.1f} s"


def duration(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s" if seconds >= 60 else f"{seconds:.0f} s"


def write(folder: Path, results: Results, base: dict[str, dict[str, Any]], noise: float) -> None:
    """Print the report and leave results.md, .csv, .json and .png in the folder. `base` holds the pretrained model's scores by task:
    first the task it knows, then the new one."""
    from adaptsft.run import environment

    facts, tasks = environment(), list(base)
    by_cell = {(task, mode): _cell(results, task, mode) for task in tasks for mode in MODES}
    header = ["objective", *(f"{kind}, {mode}" for kind in ("known", "new") for mode in ("greedy", "T=1"))]
    untouched = ["(untouched)", *(f"{base[task][mode]:.2f}" for task, mode in by_cell)]
    means = [[label, *(_mean(cell[label]) for cell in by_cell.values())] for label in _labels(results)]
    seeds = [[label, *(" ".join(f"{value:.2f}" for value in cell[label]) for cell in by_cell.values())] for label in _labels(results)]
    names = sorted({result["seed"] for result in results})
    over = f"mean ± standard error of {len(names)} seeds" if len(names) > 1 else "one seed"
    text = f"Exact match on held-out words, {over}:\n\n{_table([header, untouched, *means])}\n\n"
    text += (
        f"Every seed ({', '.join(str(seed) for seed in sorted({result['seed'] for result in results}))}):\n\n{_table([header, *seeds])}\n\n"
    )
    text += _reading(results, tasks, noise)
    print(f"\n[3/3] results\n\n{text}\n\n{_samples(results, base)}\n\n{_next_steps(folder, results)}")

    scalars = [{key: value for key, value in result.items() if key not in ("curves", "answers")} for result in results]
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, scalars[0])
        writer.writeheader()
        writer.writerows(scalars)
    (folder / "results.json").write_text(json.dumps({"environment": facts, "base": base, "runs": scalars}, indent=1))
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    made = f"Made by `{facts['command']}` on {facts['machine']['platform']}, {facts['machine']['cpus']} CPUs, with {versions}."
    (folder / "results.md").write_text(f"# Quick start\n\n{text}\n\n{made}\n")
    plot(folder / "results.png", results, tasks, noise)


def _labels(results: Results) -> list[str]:
    return list(dict.fromkeys(result["label"] for result in results))


def _cell(results: Results, task: str, mode: str) -> dict[str, list[float]]:
    """label -> the exact match of each seed, in the order of the seeds."""
    chosen = sorted((result for result in results if result["task"] == task), key=lambda result: result["seed"])
    return {label: [result[mode] for result in chosen if result["label"] == label] for label in _labels(results)}


def _mean(values: list[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return f"{statistics.mean(values):.2f}" + (f" ± {error:.2f}" if error is not None else "")


def _table(rows: list[list[str]]) -> str:
    """Markdown that is aligned for a terminal too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _reading(results: Results, tasks: list[str], noise: float) -> str:
    known, new = tasks
    first = {task: statistics.mean(result["curves"]["mean_p"][0] for result in results if result["task"] == task) for task in tasks}
    return (
        f"known: `{known}`, one of the pretrained tasks; its noisy targets have a mean p of {first[known]:.2f} before fine-tuning.\n"
        f"new: `{new}`, a tag and symbols never seen; its noisy targets have a mean p of {first[new]:.2f}.\n"
        "T=1 samples from the model as it is, and so shows what it has taken from wrong labels. One that learns them with their noise is\n"
        f"right in all {LENGTH} characters with a probability of {1 - noise:g}^{LENGTH} = {(1 - noise) ** LENGTH:.2f}.\n"
        "One tiny model, few seeds and a short budget: this shows how the objectives differ, not which one is best for you."
    )


def _samples(results: Results, base: dict[str, dict[str, Any]]) -> str:
    """What each objective's first seed writes for one held-out word."""
    word, seed = held_out_words(1)[0], results[0]["seed"]
    header = ["one word, seed " + str(seed), *(f"{prompt(task, word)} {mode}" for task in base for mode in ("greedy", "T=1"))]
    rows = [["(right answer)", *(TASKS[task].answer(word) for task in base for _ in MODES)]]
    for label in _labels(results):
        found = {result["task"]: result["answers"] for result in results if result["label"] == label and result["seed"] == seed}
        rows.append([label, *(found[task][mode] or "(nothing)" for task in base for mode in MODES)])
    return _table([header, *rows])


def _next_steps(folder: Path, results: Results) -> str:
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else "python"
    quickstart = shlex.join([python, "-m", "adaptsft.quickstart", *sys.argv[1:]])
    last = results[-1]
    run = folder / f"{last['task']}-{last['label']}-{last['seed']}"
    return "\n".join(
        [
            f"{folder}/",
            "  results.png                  the same as a picture, with mean p over the runs",
            "  results.md, .csv, .json      the tables, every run, machine and versions",
            f"  {run.name + '.yaml':28} the configuration of a run, for adaptsft.train; every run has one",
            f"  {run.name + '/':28} its metrics.jsonl, and final/, a Hugging Face model",
            "",
            "Try next",
            f"  {python} -m adaptsft.chat {run} --prompt '<cipher>please=' --temperature 1",
            f"  {quickstart} objectives.deft.objective.name=deft   (runs only what is missing)",
            f"  {quickstart} noise=0 run_dir={folder}_clean",
            f"  {python} -m adaptsft.train --help   (your own model and data)",
        ]
    )


def plot(path: Path, results: Results, tasks: list[str], noise: float) -> None:
    """Above, exact match (bars: mean, dots: seeds); below, mean p of the training targets over the run, and alpha where it moves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = _labels(results)
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for (above, below), task, kind in zip(axes.T, tasks, ("known", "new"), strict=True):
        for m, mode in enumerate(MODES):
            for i, (label, values) in enumerate(_cell(results, task, mode).items()):
                x = m * (len(labels) + 1) + i
                above.bar(x, statistics.mean(values), color=colours[label], label=label if m == 0 else None, width=0.8)
                above.plot([x] * len(values), values, "o", color="black", markersize=3, clip_on=False)
        above.set_xticks([m * (len(labels) + 1) + (len(labels) - 1) / 2 for m in (0, 1)], ["greedy", "temperature 1"])
        above.set(title=f"{task}: {kind} to the model", ylabel="exact match", ylim=(0, 1))
        above.axhline((1 - noise) ** LENGTH, color="grey", linestyle=":", linewidth=1, label="labels with their noise")
        for result in results:
            if result["task"] == task:
                below.plot(_smooth(result["curves"]["mean_p"]), color=colours[result["label"]], linewidth=1)
        for result in results:
            alpha = result["curves"]["alpha"]
            if (result["task"], result["seed"]) == (task, results[0]["seed"]) and min(alpha) < max(alpha):
                below.plot(alpha, color=colours[result["label"]], linestyle="--", linewidth=1, label=f"alpha of {result['label']}")
                below.legend(loc="lower right", frameon=False)
        below.set(xlabel="step", ylabel="mean p of the (noisy) targets", ylim=(0, 1))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _smooth(values: list[float], window: int = 5) -> list[float]:
    return [statistics.mean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]
