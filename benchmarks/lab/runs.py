"""One run of the lab: a family's regime under a method and a seed, trained by adaptsft.train and
scored; its result is one JSON file.

A result is used again while its `fingerprint` is that of the run that is asked for: of the
trainer's configuration, the first examples, the pretrained model, the number of questions, and the
code, also that of an objective or controller of the user's own.
"""

import itertools
import json
import random
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lab import bases, families, scoring, tasks
from benchmarks.lab.bases import Base
from benchmarks.lab.fingerprint import CODE, FAST_CODE, MEASURING_CODE, commit, digest, users_code
from benchmarks.lab.regimes import Part, Regime, find, name_of
from benchmarks.lab.settings import reads_base
from benchmarks.lab.training import configure, measure_base, train_logged

UNTOUCHED = "base"  # the method that does not train
POINTS = 50  # of a trajectory in the result
METRICS = ("greedy", "sampled", "pass_at_8", "entropy")  # of scoring


@dataclass(frozen=True)
class Run:
    """Everything a worker needs. `folder` is the lab's; `keys` are the trainer's, of the preset and
    of the method together."""

    folder: Path
    family: str  # a name or a path, of families.find
    regime: str  # what regimes.find takes
    method: str
    seed: int
    items: int
    keys: dict[str, Any]
    base: Base
    model: str  # fingerprint of the pretrained model
    keep: bool = False  # the trained model too, in `folder`/runs
    lr: float | None = None  # instead of that of `keys`; one of several
    fast: bool = False  # trained in a stack, not by adaptsft.train

    @property
    def name(self) -> str:
        lr = "" if self.lr is None else f"-lr{self.lr:g}"
        family, regime = families.find(self.family).name, name_of(self.regime)
        return f"{family}/{regime}/base{self.base}/{self.method}-{self.seed}{lr}"

    @property
    def result(self) -> Path:
        return self.folder / "results" / f"{self.name}.json"

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / self.name

    @property
    def pretrained(self) -> Path:
        return bases.place(self.folder, self.family, self.base) / "final"

    @property
    def trainer_keys(self) -> dict[str, Any]:
        """With the run's learning rate and steps."""
        lr = {} if self.lr is None else {"lr": self.lr}
        return self.keys | {"train": self.keys["train"] | lr | {"max_steps": self.steps}}

    @property
    def steps(self) -> int:
        return find(self.regime)[1].steps or self.keys["train"]["max_steps"]

    @property
    def examples(self) -> int:
        """Distinct ones, of all sources together."""
        seen = self.steps * self.keys["train"]["global_batch_size"]
        return max(1, seen // find(self.regime)[1].epochs)

    def data_fingerprint(self) -> str:
        """Of what the regime is: the text of the family's file, the labels and answers of some
        questions, and how many there will be."""
        (regime, _), generator = find(self.regime), random.Random(0)
        asked = list(itertools.islice(self._questions("fingerprint"), 50))
        parts: list[Any] = [self.seed, self.examples, regime.sources, families.source(self.family)]
        for part in regime.parts:
            task, others = self._family.role(part.role), self._questions("others")
            parts += [
                [
                    tasks.prompt(task, q),
                    tasks.right_strings(task.answer(q)) or list(task.answer(q)),
                    tasks.label(task, q, part.noise, generator, others),
                ]
                for q in asked
            ]
        return digest(parts)

    @property
    def _family(self) -> tasks.Family:
        return families.find(self.family)

    def _questions(self, seed: str) -> Iterator[str]:
        return tasks.questions(self._family, find(self.regime)[0].zipf, False, seed)

    def fingerprint(self) -> str:
        trained = None if self.method == UNTOUCHED else self.trainer_keys
        data = self.data_fingerprint()
        code = [FAST_CODE] * self.fast + [MEASURING_CODE] * reads_base(self.keys)
        code += users_code(trained or {})
        return digest([self.model, data, self.items, trained, CODE, *code])

    def finished(self) -> dict[str, Any] | None:
        """The result, if there is one of this very run."""
        try:
            result = json.loads(self.result.read_text())
        except (OSError, ValueError):
            return None
        return result if result["fingerprint"] == self.fingerprint() else None


def execute(run: Run) -> dict[str, Any]:
    """Train, score, write the result and, unless it is to be kept, remove the trained model.
    Raises UserError."""
    torch.set_num_threads(1)
    began, cpu = time.perf_counter(), time.process_time()
    family, (regime, _) = families.find(run.family), find(run.regime)
    sources = data_of(run, family, regime)
    model, curves = run.pretrained, {}
    if run.method != UNTOUCHED:
        shutil.rmtree(run.run_dir, ignore_errors=True)
        log = {"log": {"every": run.steps}}  # the metrics are read once, at the end
        keys = [run.trainer_keys, log]
        places = (run.run_dir, model, run.seed, sources, run.folder / "cache")
        if reads_base(run.keys):
            plain = run.trainer_keys | {"objective": {}, "controller": {}}
            keys += [{"objective": {"base_tokens": measure_base(configure(*places, plain))}}]
        train_logged(configure(*places, *keys))
        model, curves = run.run_dir / "final", trajectories(metrics_of(run.run_dir))
    trained, tokenizer = scoring.load(model, run.keys["train"].get("device", "auto"))
    result = result_of(run, trained, tokenizer, curves)
    result["seconds"] = round(time.perf_counter() - began, 2)
    result["cpu_seconds"] = round(time.process_time() - cpu, 2)
    write_result(run.result, result)
    if not run.keep:
        shutil.rmtree(run.run_dir, ignore_errors=True)
        for suffix in (".yaml", ".log"):
            Path(f"{run.run_dir}{suffix}").unlink(missing_ok=True)
        shutil.rmtree(f"{run.run_dir}.diagnosis", ignore_errors=True)
    return result


def result_of(run: Run, model: Any, tokenizer: Any, curves: dict[str, Any]) -> dict[str, Any]:
    """The result of a trained model, but for what it cost."""
    family, (regime, _) = families.find(run.family), find(run.regime)
    parts = scoring.score(model, tokenizer, family, regime, run.items, run.seed)
    files = data_of(run, family, regime)
    likelihood = {name: scoring.mean_p(model, tokenizer, path) for name, path in files.items()}
    return {
        **placed(run),
        **{key: statistics.mean(part[key] for part in parts.values()) for key in METRICS},
        "parts": parts,  # by task
        "train_mean_p": statistics.mean(likelihood.values()),
        "sources": likelihood,
        "curves": curves,
        "keys": {} if run.method == UNTOUCHED else run.trainer_keys,
        "base_scores": bases.base_scores(run.folder, run.family, run.base),
        "commit": commit(),
        "fingerprint": run.fingerprint(),
    }


def placed(run: Run) -> dict[str, Any]:
    """What a result begins with: which run it is of."""
    lr = None if run.method == UNTOUCHED else run.trainer_keys["train"].get("lr")
    return {
        "family": families.find(run.family).name,
        "regime": name_of(run.regime),
        "method": run.method,
        "base": run.base.number,
        "strength": run.base.strength,
        "lr": lr,
        "seed": run.seed,
        "fast": run.fast,
        "items": run.items,
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(result, indent=1))
    partial.rename(path)


def data_of(run: Run, family: tasks.Family, regime: Regime) -> dict[str, Path]:
    """The training files by source, written where they are missing; all methods share them."""
    groups: dict[str, list[Part]] = {"all": [*regime.parts]}
    if regime.sources:
        groups = {part.role: [part] for part in regime.parts}
    name = f"{family.name}-{name_of(run.regime)}-{run.seed}-{run.data_fingerprint()}"
    paths = {group: run.folder / "data" / name / f"{group}.jsonl" for group in groups}
    for group, parts in groups.items():
        if not paths[group].is_file():
            pairs = [(family.role(part.role), part.noise) for part in parts]
            count, seed = max(1, run.examples // len(groups)), f"{group} {run.seed}"
            tasks.write_examples(paths[group], family, pairs, count, regime.zipf, seed)
    return paths


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def trajectories(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Thinned curves of a run, a list each: {step, nll, mean_p, alpha, floor, lower}, and lr_scale
    where it moves; several sources are in `sources`: {source: {…}}. `steps` are the lines of
    metrics.jsonl."""
    every, last = max(1, len(steps) // POINTS), len(steps) - 1
    steps = [step for i, step in enumerate(steps) if i % every == 0 or i == last]

    def curve(values: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            key: [None if of[key] is None else round(of[key], 4) for of in values]
            for key in ("nll", "mean_p", "alpha", "floor", "lower")
        }

    curves = {"step": [step["step"] for step in steps]} | curve(steps)
    if "lr_scale" in steps[0]:
        curves["lr_scale"] = [round(step["lr_scale"], 4) for step in steps]
    if "sources" in steps[0]:
        names = list(steps[0]["sources"])
        curves["sources"] = {
            name: curve([step["sources"][name] for step in steps]) for name in names
        }
    return curves
