"""Small real runs for the tests: a generated data file, a configuration, and training in a process
of its own that may be killed."""

import itertools
import json
import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import DTensor

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.distributed import checkpoint
from adaptsft.distributed.ranks import device_mesh, process_group
from adaptsft.model.build import build_model
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.base import register
from adaptsft.objectives.library.functions import nll
from adaptsft.objectives.state import initial_state
from adaptsft.training.optim import build_optimizer

# forkserver: torch and transformers are imported once, and each run is still a process of its own
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["adaptsft.train", "tests.runs", "tests.warm"])


def write_data(path: Path, examples: int, seed: int = 0) -> Path:
    """Additions of uneven length as prompt/completion lines."""
    generator = random.Random(seed)
    with path.open("w") as file:
        for _ in range(examples):
            terms = [generator.randrange(100) for _ in range(generator.randrange(2, 7))]
            completion = (
                " ".join(f"{a} + {b} = {a + b}." for a, b in itertools.pairwise(terms))
                + f" The sum is {sum(terms)}."
            )
            file.write(
                json.dumps(
                    {"prompt": "Add " + ", ".join(map(str, terms)), "completion": completion}
                )
                + "\n"
            )
    return path


def small_config(folder: Path, model: Path, name: str = "run", **overrides: Any) -> Config:
    """A run of six steps over 20 examples, which crosses an epoch boundary, saved at its third and
    its last; keys as on the command line, with __ for dots."""
    data = folder / "data.jsonl"
    if not data.is_file():
        write_data(data, 20)
    settings = {
        "run_dir": folder / name,
        "model.path": model,
        "data.path": data,
        "data.cache_dir": folder / "cache",
        "data.max_length": 128,
        "train.max_steps": 6,
        "train.global_batch_size": 5,
        "train.micro_batch_size": 1,
        "train.lr": 1e-2,
        "train.warmup_ratio": 0.2,
        "train.gc_every": 0,  # a collection takes as long as a step: of all that pytest holds
        "checkpoint.every": 3,
        "checkpoint.keep_last": 100,
        "checkpoint.export_dtype": "fp32",
        "log.every": 2,
        "log.trackers": [],
    }
    settings |= {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(
        [
            f"{key}={json.dumps(value) if isinstance(value, list | dict | bool) else value}"
            for key, value in settings.items()
        ]
    )


def metrics_of(config: Config) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [
        json.loads(line)
        for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    ]
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second_per_rank")}
        for row in rows
    ]


calls_left = 0


@register("nll_then_killed")
def nll_then_killed(logp):
    """NLL that ends its process by SIGKILL after a number of calls: a crash within a step."""
    global calls_left
    calls_left -= 1
    if calls_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return nll(logp)


def _run(config: Config, kill_after_calls: int) -> None:
    global calls_left
    from adaptsft.train import train

    calls_left = kill_after_calls
    train(config)


def run_in_process(config: Config, kill_after_calls: int = 0) -> int:
    """Train in a new process; its exit code, negative for a signal. Each micro-batch of one chunk
    is one call."""
    process = PROCESSES.Process(target=_run, args=(config, kill_after_calls))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def flatten(state: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    """Nested state -> {dotted name: full tensor}."""
    flat: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, torch.Tensor):
            flat[prefix + key] = (
                value.full_tensor().clone() if isinstance(value, DTensor) else value.clone()
            )
    return flat


def saved_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint, read without any model."""
    file = checkpoint.with_suffix(".pt")
    dcp_to_torch_save(checkpoint, file)
    return flatten(torch.load(file))


def loaded_state(config: Config, saved: Path) -> dict[str, torch.Tensor]:
    """What model, optimizer and control hold after loading a checkpoint on this many ranks."""
    with process_group("cpu") as device:
        model = build_model(
            config.model,
            config.train,
            load_pretrained(config.model),
            device_mesh(device, config.train.replicas),
            device,
        )
        optimizer = build_optimizer(model, config.train)
        control = initial_state(config.objective, 1, device)
        checkpoint.load(saved, model, optimizer, control._asdict())
        return flatten(checkpoint.full_state(model, optimizer, control._asdict()))
