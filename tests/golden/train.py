"""The runs of `python -m tests.golden`, and what trains those of one rank, or of two, in turn."""

import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from adaptsft.config.resolve import load_config
from adaptsft.model.tiny import make_tiny_model
from adaptsft.train import train

SHARED = {
    "data.path": "FOLDER/data.jsonl",
    "data.cache_dir": "FOLDER/cache",
    "data.max_length": 96,
    "model.path": "FOLDER/model",
    "train.max_steps": 6,
    "train.global_batch_size": 5,
    "train.lr": 1e-2,
    "train.warmup_ratio": 0.2,
    "train.device": "cpu",
    "train.gc_every": 0,  # a collection takes as long as a step
    "checkpoint.every": 3,
    "checkpoint.export_dtype": "fp32",
    "log.every": 2,
    "log.trackers": "[]",
}
KEPT = {
    "objective.name": "threshold",
    "objective.lower_quantile": 0.3,
    "objective.normalizer": "kept",
}
TWO_SOURCES = {
    "data.path": "''",
    "data.sources": (
        "[{path: FOLDER/data.jsonl, name: sums}, {path: FOLDER/other.jsonl, weight: 0.5}]"
    ),
}
STRICT = {
    "data.packing": "false",
    "train.global_batch_size": 8,
    "train.micro_batch_size": 2,
    "train.loss_reduction": "micro_batch",
    "model.param_dtype": "bf16",
}
# name: (ranks, keys). FOLDER holds the data. `resume` is trained, loses its last checkpoint, and is
# trained again.
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "packed": (1, {}),
    "padded": (1, {"data.packing": "false", "train.micro_batch_size": 3, "objective.name": "talr"}),
    "resume": (1, {"controller.name": "auto", "train.max_steps": 6}),
    "stream": (1, {"data.path": "FOLDER/part-*.jsonl", "data.stream": 2}),
    "two_ranks": (2, {"objective.name": "alpha", "objective.alpha": 0.5}),
    "accumulation": (2, {"train.global_batch_size": 20, "train.clip_norm": 0.5}),
    "threshold_kept": (2, KEPT),
    "auto_two_sources": (2, TWO_SOURCES | {"controller.name": "auto", "train.max_steps": 10}),
    "strict_reproduction": (2, KEPT | STRICT),
}


def arguments(name: str, folder: Path) -> list[str]:
    """The command line of a run."""
    settings = SHARED | {"run_dir": f"FOLDER/{name}"} | RUNS[name][1]
    return [f"{key}={value}".replace("FOLDER", str(folder)) for key, value in settings.items()]


def train_all(folder: Path) -> None:
    ranks = int(os.environ["WORLD_SIZE"])
    if ranks == 1:  # the ranks of the second start find it
        make_tiny_model(folder / "model", "llama", tied=False)
        (folder / "machine.json").write_text(json.dumps(machine()))
    for name in (name for name, (wanted, _) in RUNS.items() if wanted == ranks):
        train(load_config(arguments(name, folder)))
    if ranks == 1:
        shutil.rmtree(folder / "resume" / "checkpoints" / "step_00000006")
        train(load_config(arguments("resume", folder)))


def machine() -> dict[str, str]:
    """What bits depend on."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    return {
        "torch": torch.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "cpu": cpu,
    }
