"""One run of the lab: a family's regime under a method and a seed, trained by adaptsft.train and
scored; its result is one JSON file.

A result is used again while its `fingerprint` is that of the run that is asked for: of the
trainer's configuration, the first examples, the pretrained model, the number of questions, and the
code.
"""

import contextlib
import hashlib
import itertools
import json
import random
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers.utils import logging

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.model.tiny import make_tiny_model
from adaptsft.train import train
from benchmarks.lab import scoring, tasks
from benchmarks.lab.fingerprint import CODE, commit, digest
from benchmarks.lab.regimes import FAMILIES, Part, Regime, find

UNTOUCHED = "base"  # the method that does not train
POINTS = 50  # of a trajectory in the result


@dataclass(frozen=True)
class Run:
    """Everything a worker needs. `folder` is the lab's; `keys` are the trainer's, of the preset and
    of the method together."""

    folder: Path
    family: str
    regime: str
    method: str
    seed: int
    items: int
    keys: dict[str, Any]
    base: str  # fingerprint of the pretrained model
    keep: bool = False  # the trained model too, in `folder`/runs

    @property
    def name(self) -> str:
        return f"{self.family}/{self.regime}/{self.method}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.folder / "results" / f"{self.name}.json"

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / self.name

    @property
    def pretrained(self) -> Path:
        return self.folder / "pretrained" / self.family / "final"

    @property
    def steps(self) -> int:
        return max(1, round(self.keys["train"]["max_steps"] * find(self.regime)[1]))

    def data_fingerprint(self) -> str:
        """Of what the regime is: the labels and answers of some questions, and how many there will
        be."""
        family, (regime, _), generator = FAMILIES[self.family], find(self.regime), random.Random(0)
        source = tasks.questions(family, regime.zipf, False, "fingerprint")
        asked = list(itertools.islice(source, 50))
        examples = self.steps * self.keys["train"]["global_batch_size"]
        parts: list[Any] = [self.seed, examples, regime.sources]
        for part in regime.parts:
            task = family.role(part.role)
            parts += [
                [tasks.prompt(task, q), task.answer(q), tasks.label(task, q, part.noise, generator)]
                for q in asked
            ]
        return digest(parts)

    def fingerprint(self) -> str:
        trained = None if self.method == UNTOUCHED else self.keys
        data = self.data_fingerprint()
        return digest([self.base, data, self.items, trained, CODE])

    def finished(self) -> dict[str, Any] | None:
        """The result, if there is one of this very run."""
        try:
            result = json.loads(self.result.read_text())
        except (OSError, ValueError):
            return None
        return result if result["fingerprint"] == self.fingerprint() else None


def configure(
    run_dir: Path, model: Path, seed: int, sources: dict[str, Path], cache: Path, *keys: Any
) -> Config:
    """The trainer's configuration, left in `run_dir`.yaml so that any run can be repeated by hand.
    Raises ConfigError."""
    data: dict[str, Any] = {"template": "plain", "prompt_template": "{prompt}"}
    data["cache_dir"] = str(cache)
    if len(sources) == 1:
        data["path"] = str(*sources.values())
    else:
        data["sources"] = [{"name": name, "path": str(path)} for name, path in sources.items()]
    places = {"run_dir": str(run_dir), "seed": seed, "model": {"path": str(model)}, "data": data}
    files = {"checkpoint": {"export_dtype": "fp32"}, "log": {"tensorboard": False}}
    path = Path(f"{run_dir}.yaml")  # not with_suffix: the name of a method may hold a dot
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.merge(*keys, places, files)))
    return load_config([str(path)])


def train_logged(config: Config) -> None:
    """Train; the trainer's lines go to `run_dir`.log."""
    logging.disable_progress_bar()
    with contextlib.ExitStack() as stack:
        # line by line: another process shows the last one
        log = stack.enter_context(Path(f"{config.run_dir}.log").open("w", buffering=1))
        stack.enter_context(contextlib.redirect_stderr(log))
        train(config)


def pretraining_log(folder: Path, family_name: str) -> Path:
    """Where `pretrain` writes the trainer's lines."""
    return folder / "pretrained" / family_name / "run.log"


def pretrain(folder: Path, family_name: str, model: dict[str, Any], keys: dict[str, Any]) -> str:
    """Leave the family's pretrained model in `folder`/pretrained, or find it there. Returns its
    fingerprint. Raises UserError."""
    logging.disable_progress_bar()
    family, place = FAMILIES[family_name], folder / "pretrained" / family_name
    count = keys["train"]["max_steps"] * keys["train"]["global_batch_size"]
    parts = [(task, tasks.Noise()) for task in family.pretrained]
    examples = place / "examples.jsonl"
    data = tasks.write_examples(examples, family, parts, count, False, "pretraining")
    content = hashlib.sha256(data.read_bytes()).hexdigest()
    fingerprint = digest([model, keys, content, CODE])
    stamp = place / "fingerprint"
    if not stamp.is_file() or stamp.read_text() != fingerprint:
        stamp.unlink(missing_ok=True)
        for old in ("run", "final"):
            shutil.rmtree(place / old, ignore_errors=True)
        random_model = make_tiny_model(place / "random", tokenizer=tasks.tokenizer(family), **model)
        sources = {"pretraining": data}
        train_logged(configure(place / "run", random_model, 0, sources, place / "cache", keys))
        (place / "run" / "final").rename(place / "final")
        stamp.write_text(fingerprint)
    return fingerprint


def execute(run: Run) -> dict[str, Any]:
    """Train, score, write the result and, unless it is to be kept, remove the trained model.
    Raises UserError."""
    torch.set_num_threads(1)
    began, cpu = time.perf_counter(), time.process_time()
    family, (regime, _) = FAMILIES[run.family], find(run.regime)
    sources = data_of(run, family, regime)
    model, curves, keys = run.pretrained, {}, {}
    if run.method != UNTOUCHED:
        keys = run.keys
        # the metrics are read once, at the end
        budget = {"train": {"max_steps": run.steps}, "log": {"every": run.steps}}
        shutil.rmtree(run.run_dir, ignore_errors=True)
        cache = run.folder / "cache"
        train_logged(configure(run.run_dir, model, run.seed, sources, cache, keys, budget))
        model, curves = run.run_dir / "final", trajectories(run.run_dir / "metrics.jsonl")
    trained, tokenizer = scoring.load(model, run.keys["train"].get("device", "auto"))
    parts = scoring.score(trained, tokenizer, family, regime, run.items, run.seed)
    likelihood = {name: scoring.mean_p(trained, tokenizer, path) for name, path in sources.items()}
    result = {
        **{name: getattr(run, name) for name in ("family", "regime", "method", "seed", "items")},
        "greedy": statistics.mean(part["greedy"] for part in parts.values()),
        "sampled": statistics.mean(part["sampled"] for part in parts.values()),
        "parts": parts,  # by task
        "train_mean_p": statistics.mean(likelihood.values()),
        "sources": likelihood,
        "curves": curves,
        "keys": keys,
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "commit": commit(),
        "fingerprint": run.fingerprint(),
    }
    write_result(run.result, result)
    if not run.keep:
        shutil.rmtree(run.run_dir, ignore_errors=True)
        for suffix in (".yaml", ".log"):
            Path(f"{run.run_dir}{suffix}").unlink(missing_ok=True)
    return result


def write_result(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(result, indent=1))
    partial.rename(path)


def data_of(run: Run, family: tasks.Family, regime: Regime) -> dict[str, Path]:
    """The training files by source, written where they are missing; all methods share them."""
    count = run.steps * run.keys["train"]["global_batch_size"]
    groups: dict[str, list[Part]] = {"all": [*regime.parts]}
    if regime.sources:
        groups = {part.role: [part] for part in regime.parts}
    folder = run.folder / "data" / f"{run.family}-{run.regime}-{run.seed}-{run.data_fingerprint()}"
    paths = {name: folder / f"{name}.jsonl" for name in groups}
    for name, parts in groups.items():
        if not paths[name].is_file():
            pairs = [(family.role(part.role), part.noise) for part in parts]
            examples, seed = count // len(groups), f"{name} {run.seed}"
            tasks.write_examples(paths[name], family, pairs, examples, regime.zipf, seed)
    return paths


def trajectories(metrics: Path) -> dict[str, Any]:
    """Thinned curves of a run, a list each: {step, nll, mean_p, alpha, lower}, and of several
    sources `sources`: {source: {…}}."""
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    every, last = max(1, len(steps) // POINTS), len(steps) - 1
    steps = [step for i, step in enumerate(steps) if i % every == 0 or i == last]

    def curve(values: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            key: [None if of[key] is None else round(of[key], 4) for of in values]
            for key in ("nll", "mean_p", "alpha", "lower")
        }

    curves = {"step": [step["step"] for step in steps]} | curve(steps)
    if "sources" in steps[0]:
        names = list(steps[0]["sources"])
        curves["sources"] = {
            name: curve([step["sources"][name] for step in steps]) for name in names
        }
    return curves
