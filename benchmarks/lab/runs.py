"""One run of the lab: a family's regime under a method and a seed, trained by adaptsft.train and scored; its result is one JSON file.

A result is used again while its `fingerprint` is that of the run that is asked for: of the trainer's configuration, the first
examples, the pretrained model, the number of questions, and, where a controller steers, of the controllers' source.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import random
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from transformers.utils import logging

import adaptsft
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.model.tiny import make_tiny_model
from benchmarks.lab import scoring, tasks
from benchmarks.lab.regimes import FAMILIES, Part, Regime, find

UNTOUCHED = "base"  # the method that does not train
POINTS = 50  # of a trajectory in the result


@dataclass(frozen=True)
class Run:
    """Everything a worker needs. `folder` is the lab's; `keys` are the trainer's, of the preset and of the method together."""

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
        """Of what the regime is: the labels and answers of some questions, and how many there will be."""
        family, (regime, _), generator = FAMILIES[self.family], find(self.regime), random.Random(0)
        asked = list(
            itertools.islice(tasks.questions(family, regime.zipf, False, "fingerprint"), 50)
        )
        parts: list[Any] = [
            self.seed,
            self.steps * self.keys["train"]["global_batch_size"],
            regime.sources,
        ]
        for part in regime.parts:
            task = family.role(part.role)
            parts += [
                [tasks.prompt(task, q), task.answer(q), tasks.label(task, q, part.noise, generator)]
                for q in asked
            ]
        return digest(parts)

    def fingerprint(self) -> str:
        trained = None if self.method == UNTOUCHED else self.keys
        steers = self.keys.get("controller", {}).get("name", "fixed") != "fixed"
        return digest(
            [
                self.base,
                self.data_fingerprint(),
                self.items,
                scoring.SAMPLES,
                scoring.EXAMPLES,
                trained,
                steers and controllers_source(),
            ]
        )

    def finished(self) -> dict[str, Any] | None:
        """The result, if there is one of this very run."""
        try:
            result = json.loads(self.result.read_text())
        except (OSError, ValueError):
            return None
        return result if result["fingerprint"] == self.fingerprint() else None


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def controllers_source() -> str:
    package = Path(adaptsft.__file__).parent
    return digest(
        [
            file.read_text()
            for file in sorted(package.glob("control*/*.py")) + sorted(package.glob("control*.py"))
        ]
    )


@functools.cache
def commit() -> str:
    """Of the code that runs; `+` where files differ from it."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
        )
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"


def configure(
    run_dir: Path, model: Path, seed: int, sources: dict[str, Path], cache: Path, *keys: Any
) -> Config:
    """The trainer's configuration, left in `run_dir`.yaml so that any run can be repeated by hand. Raises ConfigError."""
    data: dict[str, Any] = {
        "template": "plain",
        "prompt_template": "{prompt}",
        "cache_dir": str(cache),
    }
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


def train_logged(config: Config, show: bool = False) -> None:
    """Train; the trainer's lines go to `run_dir`.log, or are shown."""
    from adaptsft.train import train

    logging.disable_progress_bar()
    with contextlib.ExitStack() as stack:
        if not show:
            log = stack.enter_context(Path(f"{config.run_dir}.log").open("w"))
            stack.enter_context(contextlib.redirect_stderr(log))
        train(config)


def pretrain(
    folder: Path, family_name: str, model: dict[str, Any], keys: dict[str, Any], show: bool
) -> str:
    """Leave the family's pretrained model in `folder`/pretrained, or find it there; returns its fingerprint. Raises UserError."""
    family, place = FAMILIES[family_name], folder / "pretrained" / family_name
    count = keys["train"]["max_steps"] * keys["train"]["global_batch_size"]
    parts = [(task, tasks.Noise()) for task in family.pretrained]
    data = tasks.write_examples(
        place / "examples.jsonl", family, parts, count, False, "pretraining"
    )
    fingerprint = digest([model, keys, hashlib.sha256(data.read_bytes()).hexdigest()])
    stamp = place / "fingerprint"
    if not stamp.is_file() or stamp.read_text() != fingerprint:
        stamp.unlink(missing_ok=True)
        for old in ("run", "final"):
            shutil.rmtree(place / old, ignore_errors=True)
        make_tiny_model(place / "random", tokenizer=tasks.tokenizer(family), **model)
        train_logged(
            configure(
                place / "run", place / "random", 0, {"pretraining": data}, place / "cache", keys
            ),
            show,
        )
        (place / "run" / "final").rename(place / "final")
        stamp.write_text(fingerprint)
    return fingerprint


def execute(run: Run) -> dict[str, Any]:
    """Train, score, write the result and, unless it is to be kept, remove the trained model. Raises UserError."""
    torch.set_num_threads(1)
    began, cpu = time.perf_counter(), time.process_time()
    family, (regime, _) = FAMILIES[run.family], find(run.regime)
    sources = data_of(run, family, regime)
    model, curves, keys = run.pretrained, {}, {}
    if run.method != UNTOUCHED:
        keys = run.keys
        budget = {
            "train": {"max_steps": run.steps},
            "log": {"every": run.steps},
        }  # read the metrics once
        shutil.rmtree(run.run_dir, ignore_errors=True)
        train_logged(
            configure(run.run_dir, model, run.seed, sources, run.folder / "cache", keys, budget)
        )
        model, curves = run.run_dir / "final", trajectories(run.run_dir / "metrics.jsonl")
    trained, tokenizer = scoring.load(model, run.keys["train"].get("device", "auto"))
    parts = scoring.score(trained, tokenizer, family, regime, run.items, run.seed)
    likelihood = {name: scoring.mean_p(trained, tokenizer, path) for name, path in sources.items()}
    result = {
        **{name: getattr(run, name) for name in ("family", "regime", "method", "seed", "items")},
        **{
            mode: statistics.mean(part[mode] for part in parts.values())
            for mode in ("greedy", "sampled")
        },
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
    groups: dict[str, list[Part]] = (
        {part.role: [part] for part in regime.parts} if regime.sources else {"all": [*regime.parts]}
    )
    folder = run.folder / "data" / f"{run.family}-{run.regime}-{run.seed}-{run.data_fingerprint()}"
    paths = {name: folder / f"{name}.jsonl" for name in groups}
    for name, parts in groups.items():
        if not paths[name].is_file():
            pairs = [(family.role(part.role), part.noise) for part in parts]
            tasks.write_examples(
                paths[name], family, pairs, count // len(groups), regime.zipf, f"{name} {run.seed}"
            )
    return paths


def trajectories(metrics: Path) -> dict[str, Any]:
    """Thinned curves of a run, a list each: {step, nll, mean_p, alpha, lower}, and of several sources `sources`: {source: {…}}."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [
        row
        for i, row in enumerate(rows)
        if i % max(1, len(rows) // POINTS) == 0 or i == len(rows) - 1
    ]
    keys = ("nll", "mean_p", "alpha", "lower")

    def curve(of: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            key: [round(row[key], 4) if row[key] is not None else None for row in of]
            for key in keys
        }

    curves = {"step": [row["step"] for row in rows]} | curve(rows)
    if "sources" in rows[0]:
        curves["sources"] = {
            name: curve([row["sources"][name] for row in rows]) for name in rows[0]["sources"]
        }
    return curves
