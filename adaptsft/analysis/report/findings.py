"""What deserves the user's eye.

The bounds below are ours: places from where a look is worth its minute, no statements of fact.
"""

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from adaptsft.analysis.report.changes import Change, changes
from adaptsft.analysis.report.folder import RunFolder, column, mapping, number
from adaptsft.analysis.report.summary import method
from adaptsft.analysis.report.text import figures

FELL = 0.02  # of mean p
ROSE = 0.05  # of NLL, nats per token
TURNED = 1.5  # NLL at the end over its lowest, both of a twentieth of the steps
CLIPPED = 0.9  # share of the steps
COLLAPSED = 0.05  # mean token weight of the objective, or share of tokens kept
TRUNCATED = 0.2  # share of the answers
REPETITIVE = 0.1  # share of the answers
LOW_ENTROPY = 0.2  # of the answers' tokens, nats
HARMLESS = ("data.cache_dir", "data.pad_multiple")  # keys that change nothing of what is learned
# a text that ends in the same piece five times or more, …
LOOP = re.compile(r"((.{1,80}?)\2{4,}).{0,80}\Z", re.DOTALL)
LOOP_LENGTH = 40  # … which are so many characters together
WHY_NLL_RISES = (
    "-p, thresholds and controllers do that where they give tokens up; a learning rate that is too "
    "high does it too"
)


@dataclass
class Finding:
    runs: list[int]  # none: of all together
    text: str
    warning: bool = True


def of_run(number_: int, run: RunFolder) -> list[Finding]:
    """Warnings about one run from what it logged."""
    warnings = [*_capability(run), *_objective(run), *_steps(run), *_tasks(run)]
    return [Finding([number_], text) for text in warnings]


def _capability(run: RunFolder) -> Iterator[str]:
    for change in changes(run)[:1]:
        yield from _change(run, change)
    nlls = [number(row.get("nll")) for row in run.held_out]
    if len(nlls) > 2 and np.isfinite(nlls).all() and nlls[-1] > min(nlls) + ROSE:
        best = run.held_out[int(np.argmin(nlls))]["step"]
        yield (
            f"held-out NLL was lowest at step {best:,} ({figures(min(nlls))}) and is "
            f"{figures(nlls[-1])} now: the run may be too long"
        )


def _change(run: RunFolder, change: Change) -> Iterator[str]:
    sides = (change.before, change.after)
    p, q = (number(side.get("mean_p")) for side in sides)
    nll, now = (number(side.get("nll")) for side in sides)
    if q < p - FELL:
        yield (
            f"mean p fell on {change.basis}, {figures(p)} → {figures(q)}: the model finds the "
            "targets less likely than before training"
        )
    if now > nll + ROSE:
        yield (
            f"ungated NLL rose on {change.basis}, {figures(nll)} → {figures(now)} nats per token. "
            f"{WHY_NLL_RISES}"
        )
    elif (step := _turned(run)) is not None:
        yield (
            f"ungated NLL of the training batches was lowest around step {step:,} and has risen "
            f"by half or more since. {WHY_NLL_RISES}"
        )


def _turned(run: RunFolder) -> int | None:
    """The step around which training NLL was lowest, where it has risen much since."""
    both = np.array([run.column("step"), run.column("nll")])
    groups = [group for group in np.array_split(both, 20, axis=1) if group.shape[1]]
    means = [float(np.mean(group[1])) for group in groups]
    if len(run.rows) < 20 or not np.isfinite(means).all() or means[-1] < TURNED * min(means):
        return None
    return int(np.median(groups[int(np.argmin(means))][0]))


def _objective(run: RunFolder) -> Iterator[str]:
    if not run.last_rows:
        return
    weight, kept, tokens = (_mean(column(run.last_rows, k)) for k in ("weight", "kept", "tokens"))
    if weight < COLLAPSED:
        yield (
            f"the gate has all but closed: the objective's mean token weight is {figures(weight)} "
            "at the end (1 for NLL), so hardly anything is learned from a token. With a model this "
            "weak on the data NLL, or controller.name=auto, learns more"
        )
    if tokens > 0 and kept / tokens < COLLAPSED:
        yield f"the threshold keeps {kept / tokens:.1%} of the tokens at the end: widen it"


def _mean(values: np.ndarray) -> float:
    """Of those that are known; NaN, which is below no bound, where none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _steps(run: RunFolder) -> Iterator[str]:
    clip, norms = number(run.config.get("train.clip_norm")), run.column("grad_norm")
    known = norms[np.isfinite(norms)]
    if clip > 0 and len(known) >= 20 and (known > clip).mean() >= CLIPPED:
        yield (
            f"the gradient was clipped in {(known > clip).mean():.0%} of the steps (median norm "
            f"{figures(float(np.median(known)))}, train.clip_norm={figures(clip)}): clipping, not "
            "the loss, sets the size of the steps"
        )
    skipped = sum(bool(row.get("skipped")) for row in run.rows)
    if skipped:
        were = "steps were" if skipped > 1 else "step was"
        yield (
            f"{skipped:,} {were} skipped because loss or gradient was not finite (below: their "
            "examples)"
        )


def _tasks(run: RunFolder) -> Iterator[str]:
    for task, values in mapping(run.tasks[-1]["tasks"]).items() if run.tasks else []:
        if (entropy := number(mapping(values).get("entropy"))) < LOW_ENTROPY:
            yield narrow(f"{task} at step {run.tasks[-1]['step']:,}", entropy)
        truncated = number(mapping(values).get("truncated"))
        if truncated > TRUNCATED:
            yield (
                f"{truncated:.0%} of the answers to {task} ran into eval.max_tokens at "
                f"step {run.tasks[-1]['step']:,}: often the model repeats itself, or the limit is "
                "too low"
            )


def narrow(where: str, entropy: float) -> str:
    """Of a model whose own answers hardly vary."""
    return (
        f"{where}: the model's answers have {figures(entropy)} nats of entropy per token, below "
        f"{LOW_ENTROPY:g}. Reinforcement learning that starts from it may gain little "
        "(arXiv:2606.18487: below .18 nats, pass@10 fell from .806 to .481 under GRPO). "
        "controller.name=auto_rl, which ends at alpha 1, leaves more"
    )


def of_all(runs: list[RunFolder]) -> list[Finding]:
    """What to mind when runs are compared."""
    found = []
    if len({method(run) for run in runs}) > 1:
        found.append(
            Finding(
                [],
                "The loss has another scale for every objective: compare ungated NLL, mean p and "
                "tasks, not loss.",
                warning=False,
            )
        )
    for prefix, what in (
        ("data.", "their data"),
        ("model.path", "the model that they start from"),
        ("seed", "their seed"),
    ):
        if _differ(runs, prefix):
            text = f"The runs differ in {what}: see Configuration before comparing them."
            found.append(Finding([], text, warning=prefix != "seed"))
    if len({run.planned for run in runs if run.planned}) > 1:
        found.append(
            Finding(
                [],
                "The runs are of different lengths: compare them at the same step, and mind their "
                "learning rates.",
            )
        )
    return found


def _differ(runs: list[RunFolder], prefix: str) -> bool:
    """Whether a key of this prefix that changes what is learned has several values."""
    configs = [run.config for run in runs if run.config]
    keys = {key for config in configs for key in config if key.startswith(prefix)} - {*HARMLESS}
    values = ({repr(config[key]) for config in configs if key in config} for key in keys)
    return any(len(different) > 1 for different in values)


def repeats(text: str) -> bool:
    """Whether a text ends in a loop, as those of a degenerate model do."""
    end = text[-800:].encode(errors="replace")
    if len(zlib.compress(end)) > 0.6 * len(end):
        return False  # much faster, and true of nearly all texts without a loop
    found = LOOP.search(text[-800:])
    return found is not None and len(found[1]) >= LOOP_LENGTH
