"""What happened in a run, in a sentence, and what deserves the user's eye.

The bounds below are ours: places from where a look is worth its minute, no statements of fact.
"""

import math
import re
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptsft.analysis.report.folder import (
    Row,
    RunFolder,
    column,
    mapping,
    number,
    of_diagnosis,
    pooled,
)

FELL = 0.02  # of mean p
ROSE = 0.05  # of NLL, nats per token
TURNED = 1.5  # NLL at the end over its lowest, both of a twentieth of the steps
WHY_NLL_RISES = "-p, thresholds and controllers do that where they give tokens up; a learning rate that is too high does it too"
CLIPPED = 0.9  # share of the steps
COLLAPSED = 0.05  # mean weight s of the objective, or share of tokens kept
TRUNCATED = 0.2  # share of the answers
REPETITIVE = 0.1  # share of the answers
HARMLESS = ("data.cache_dir", "data.pad_multiple")  # keys that change nothing of what is learned
LOOP = re.compile(
    r"((.{1,80}?)\2{4,}).{0,80}\Z", re.DOTALL
)  # a text that ends in the same piece five times or more, …
LOOP_LENGTH = 40  # … which are so many characters together


@dataclass
class Finding:
    runs: list[int]  # none: of all together
    text: str
    warning: bool = True


@dataclass
class Change:
    """The same tokens, or tokens of the same data, before and after training."""

    basis: str  # what was measured
    before_label: str
    after_label: str
    before: Row  # as `pooled` returns them, with `sources` where there are several
    after: Row

    def of(self, source: str | None) -> tuple[Row, Row]:
        if source is None:
            return self.before, self.after
        return mapping(mapping(self.before.get("sources")).get(source)), mapping(
            mapping(self.after.get("sources")).get(source)
        )


def changes(run: RunFolder) -> list[Change]:
    """By what mean p may be compared before and after, the fairest first."""
    found = []
    sources = run.sources
    if run.diagnosis and run.diagnosis_after:
        found.append(
            Change(
                "the diagnosed training data",
                "base model",
                "final model",
                of_diagnosis(run.diagnosis),
                of_diagnosis(run.diagnosis_after),
            )
        )
    if run.held_out and run.held_out[0]["step"] == 0 and run.held_out[-1]["step"] > 0:
        last = run.held_out[-1]
        found.append(
            Change(
                "held-out data",
                "before step 1",
                f"after step {last['step']:,}",
                run.held_out[0],
                last,
            )
        )
    taken = run.last_rows
    if taken:
        after = pooled(taken) | {"sources": {name: pooled(taken, name) for name in sources}}
        ending = (
            f"steps {taken[0]['step']:,} to {taken[-1]['step']:,}"
            if len(taken) > 1
            else f"step {taken[0]['step']:,}"
        )
        if run.diagnosis:
            found.append(
                Change(
                    "training data",
                    "diagnosis of the base model",
                    ending,
                    of_diagnosis(run.diagnosis),
                    after,
                )
            )
        elif run.rows[0]["step"] == 1 and len(run.rows) > 1:
            before = pooled(run.rows[:1]) | {
                "sources": {name: pooled(run.rows[:1], name) for name in sources}
            }
            found.append(
                Change(
                    "training data",
                    "step 1, one batch under the untouched model",
                    ending,
                    before,
                    after,
                )
            )
    return [
        change
        for change in found
        if math.isfinite(number(change.before.get("mean_p")) + number(change.after.get("mean_p")))
    ]


def state(run: RunFolder) -> tuple[str, str]:
    """(finished, unfinished or started; what there is to say of it)."""
    planned, step = run.planned, run.step
    if run.final and (planned is None or step >= planned or not run.rows):
        return "finished", ""
    if planned and step >= planned:
        return (
            "finished",
            "all steps are taken, but there is no final/: it was removed, or is being written",
        )
    if not run.rows:
        return "started", "no step logged yet"
    of = f" of {planned:,}" if planned else ""
    ago = f"last written {duration(run.age)} before this report" if run.age is not None else ""
    seconds = run.column("seconds")[-50:]
    left = (
        (planned - step) * float(np.nanmean(seconds))
        if planned and np.isfinite(seconds).any()
        else math.nan
    )
    eta = f"; {duration(left)} to go if it still runs" if left > 0 else ""
    return "unfinished", f"at step {step:,}{of}; {ago}{eta}"


def objective(run: RunFolder) -> str:
    """The objective with its settings, as on a command line."""
    get = run.config.get
    name = str(get("objective.name", "unknown objective"))
    settings = []
    if "alpha" in name:
        settings.append(f"alpha={figures(get('objective.alpha'))}")
    for key in ("lower", "upper"):
        quantile = get(f"objective.{key}_quantile")
        if isinstance(quantile, int | float):
            settings.append(f"{key}_quantile={figures(quantile)}")
        elif (
            "threshold" in name
            and number(get(f"objective.{key}")) != {"lower": 0.0, "upper": 1.0}[key]
        ):
            settings.append(f"{key}={figures(get(f'objective.{key}'))}")
    settings += [
        f"{key.rsplit('.', 1)[1]}={figures(value)}"
        for key, value in run.config.items()
        if key.startswith("objective.params.")
    ]
    return name + (f" ({', '.join(settings)})" if settings else "")


def controller(run: RunFolder) -> str:
    name = str(run.config.get("controller.name", "fixed"))
    return "" if name == "fixed" else name


def sentence(run: RunFolder, best: str) -> str:
    """`best` is the best task result as text, or empty."""
    steered = controller(run)
    said = f"Objective {objective(run)}" + (
        f", moved by the controller {steered}" if steered else ""
    )
    if not run.rows:
        return f"{said}: {state(run)[1]}."
    tokens, examples = np.nansum(run.column("tokens")), np.nansum(run.column("sequences"))
    spent = float(np.nansum(run.column("seconds")))
    text = f"{said}: {run.step:,} steps, {tokens:,.0f} target tokens in {examples:,.0f} examples, {duration(spent)}."
    found = changes(run)
    if found:
        change = found[0]
        text += (
            f" On {change.basis}, NLL went {figures(change.before.get('nll'))} → {figures(change.after.get('nll'))}, "
            f"mean p {figures(change.before['mean_p'])} → {figures(change.after['mean_p'])} "
            f"({change.before_label} → {change.after_label})."
        )
    return text + (f" Best task result: {best}." if best else "")


def of_run(number_: int, run: RunFolder) -> list[Finding]:
    """Warnings about one run from what it logged."""
    found: list[Finding] = []

    def warn(text: str) -> None:
        found.append(Finding([number_], text))

    for change in changes(run)[:1]:
        p, q, nll, now = (
            number(side.get(key))
            for key in ("mean_p", "nll")
            for side in (change.before, change.after)
        )
        if q < p - FELL:
            warn(
                f"mean p fell on {change.basis}, {figures(p)} → {figures(q)}: the model finds the targets less likely than before training"
            )
        if now > nll + ROSE:
            warn(
                f"ungated NLL rose on {change.basis}, {figures(nll)} → {figures(now)} nats per token. {WHY_NLL_RISES}"
            )
        elif (step := _turned(run)) is not None:
            warn(
                f"ungated NLL of the training batches was lowest around step {step:,} and has risen by half or more since. {WHY_NLL_RISES}"
            )
    nlls = [number(row.get("nll")) for row in run.held_out]
    if len(nlls) > 2 and np.isfinite(nlls).all() and nlls[-1] > min(nlls) + ROSE:
        best = run.held_out[int(np.argmin(nlls))]["step"]
        warn(
            f"held-out NLL was lowest at step {best:,} ({figures(min(nlls))}) and is {figures(nlls[-1])} now: the run may be too long"
        )
    last = run.last_rows
    if last:
        weight, kept, tokens = (_mean(column(last, key)) for key in ("weight", "kept", "tokens"))
        if weight < COLLAPSED:
            warn(
                f"the gate has all but closed: the objective's mean weight s is {figures(weight)} at the end (1 for NLL), so "
                "hardly anything is learned from a token. With a model this weak on the data NLL, or controller.name=auto, learns more"
            )
        if tokens > 0 and kept / tokens < COLLAPSED:
            warn(f"the threshold keeps {kept / tokens:.1%} of the tokens at the end: widen it")
    clip, norms = number(run.config.get("train.clip_norm")), run.column("grad_norm")
    known = norms[np.isfinite(norms)]
    if clip > 0 and len(known) >= 20 and (known > clip).mean() >= CLIPPED:
        warn(
            f"the gradient was clipped in {(known > clip).mean():.0%} of the steps (median norm {figures(float(np.median(known)))}, "
            f"train.clip_norm={figures(clip)}): clipping, not the loss, sets the size of the steps"
        )
    skipped = sum(bool(row.get("skipped")) for row in run.rows)
    if skipped:
        warn(
            f"{skipped:,} step{'s were' if skipped > 1 else ' was'} skipped because loss or gradient was not finite (below: their examples)"
        )
    for task, values in mapping(run.tasks[-1]["tasks"]).items() if run.tasks else []:
        truncated = number(mapping(values).get("truncated"))
        if truncated > TRUNCATED:
            warn(
                f"{truncated:.0%} of the answers to {task} ran into eval.max_tokens at step {run.tasks[-1]['step']:,}: often the model "
                "repeats itself, or the limit is too low"
            )
    return found


def _mean(values: np.ndarray) -> float:
    """Of those that are known; NaN, which is below no bound, where none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _turned(run: RunFolder) -> int | None:
    """The step around which training NLL was lowest, where it has risen much since."""
    groups = [
        group
        for group in np.array_split(np.array([run.column("step"), run.column("nll")]), 20, axis=1)
        if group.shape[1]
    ]
    means = [float(np.mean(group[1])) for group in groups]
    if len(run.rows) < 20 or not np.isfinite(means).all() or means[-1] < TURNED * min(means):
        return None
    return int(np.median(groups[int(np.argmin(means))][0]))


def of_all(runs: list[RunFolder]) -> list[Finding]:
    """What to mind when runs are compared."""
    found = []
    if len({objective(run) + controller(run) for run in runs}) > 1:
        found.append(
            Finding(
                [],
                "The loss has another scale for every objective: compare ungated NLL, mean p and tasks, not loss.",
                False,
            )
        )
    for key, what in (
        ("data.", "their data"),
        ("model.path", "the model that they start from"),
        ("seed", "their seed"),
    ):
        configs = [run.config for run in runs if run.config]
        keys = {
            name
            for config in configs
            for name in config
            if name.startswith(key) and name not in HARMLESS
        }
        if any(
            len({repr(config[name]) for config in configs if name in config}) > 1 for name in keys
        ):
            found.append(
                Finding(
                    [],
                    f"The runs differ in {what}: see Configuration before comparing them.",
                    what != "their seed",
                )
            )
    if len({run.planned for run in runs if run.planned}) > 1:
        found.append(
            Finding(
                [],
                "The runs are of different lengths: compare them at the same step, and mind their learning rates.",
            )
        )
    return found


def repeats(text: str) -> bool:
    """Whether a text ends in a loop, as those of a degenerate model do."""
    end = text[-800:].encode(errors="replace")
    if len(zlib.compress(end)) > 0.6 * len(end):
        return False  # much faster, and true of nearly all texts without a loop
    found = LOOP.search(text[-800:])
    return found is not None and len(found[1]) >= LOOP_LENGTH


def figures(value: Any, digits: int = 3) -> str:
    """A number for reading: 0.705, 12.3, 4,321, 3e-5; – where there is none."""
    value = number(value)
    if not math.isfinite(value):
        return "–"
    if value and not 0.1 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}g}".replace("e-0", "e-").replace("e+0", "e")
    whole = len(f"{abs(value):.0f}")
    return (
        f"{value:,.{max(0, digits - (whole if abs(value) >= 1 else 0))}f}"
        if value != int(value)
        else f"{int(value):,}"
    )


def duration(seconds: float | None) -> str:
    if seconds is None or not 0 <= seconds < 1e10:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), seconds / 3600
    return (
        f"{minutes} min"
        if minutes < 90
        else f"{hours:.1f} h"
        if hours < 72
        else f"{hours / 24:.1f} days"
    )
