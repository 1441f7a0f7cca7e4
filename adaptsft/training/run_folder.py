"""The run folder: what was asked, with which versions, and whether it may be resumed."""

import dataclasses
import fcntl
import json
import os
import platform
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from transformers import PreTrainedModel

from adaptsft.config import strict
from adaptsft.config.load import differences, read_config, save_config
from adaptsft.config.schema import Config
from adaptsft.data.sampler import BatchSampler
from adaptsft.distributed import checkpoint
from adaptsft.distributed.ranks import print0, rank, world_size
from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.model.build import compute_dtype, embedding_of, head_of
from adaptsft_kernels import describe_implementation


def find_start(config: Config) -> Path | None:
    """The checkpoint to resume from, verified, or None for a new run. Raises rather than mix two runs in one folder; writes nothing."""
    run = Path(config.run_dir)
    saved = run / "config.yaml"
    if rank() == 0 and (run / ".lock").is_file():
        lock(run).close()  # refuse now, not after loading the model
    if saved.is_file():
        if config.resume == "never":
            raise ConfigError(
                f"run_dir={run} holds a run already and resume=never: choose another run_dir, or resume=auto to continue it"
            )
        changed = differences(read_config(saved), config)
        if changed:
            raise ConfigError(
                f"run_dir={run} holds a run with another configuration ({'; '.join(changed)}): choose another run_dir, or undo the change"
            )
    parent = next(path for path in (run, *run.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"run_dir={run}: {parent} is not a folder that can be written to")
    complete = checkpoint.complete_checkpoints(run / "checkpoints")
    start = Path(config.resume) if config.resume not in ("auto", "never") else None
    if config.resume == "auto" and complete:
        start = complete[-1]
    if start is not None:
        if not start.is_dir():
            raise CheckpointError(f"resume={start}: no such checkpoint folder")
        origin = start.parent.parent / "config.yaml"
        other = differences(read_config(origin), config) if origin.is_file() else []
        if other:
            raise CheckpointError(
                f"resume={start} belongs to a run with another configuration ({'; '.join(other)}): start from its final/ model"
            )
        if rank() == 0:
            checkpoint.verify(start)
    return start


def check_same_checkpoint(start: Path | None) -> None:
    """Raise unless all ranks have found the same checkpoint: with a run folder that is not shared they would not."""
    seen: list[str | None] = [None] * world_size()
    torch.distributed.all_gather_object(seen, None if start is None else start.name)
    if len(set(seen)) > 1:
        raise CheckpointError(
            f"ranks find different checkpoints in run_dir ({seen}): it must be on storage that all nodes share"
        )


def lock(run: Path) -> TextIO:
    """Hold the run folder for this process. The lock ends with the process, whatever ends it. Raises ConfigError where another holds it."""
    file = (run / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigError(
            f"run_dir={run}: another run is writing to it; wait for it, or choose another run_dir"
        ) from None
    return file


def lock_run_dir(config: Config, first: int) -> TextIO | None:
    """Lock the run folder and write into it what is run, once everything has been found to be in order. Returns the lock on rank 0.

    Checkpoints of later steps, there if the run goes on from an earlier one, are deleted: they would be taken for its own.
    """
    run = Path(config.run_dir)
    if rank() != 0:
        return None
    try:
        run.mkdir(parents=True, exist_ok=True)
        held = lock(run)
        partial = run / "config.yaml.tmp"
        save_config(config, partial)
        partial.rename(run / "config.yaml")
        (run / "environment.json").write_text(json.dumps(environment() | _strict(config), indent=1))
        for later in checkpoint.complete_checkpoints(run / "checkpoints"):
            if int(later.name.removeprefix("step_")) > first:
                print0(f"deleting {later}: this run goes on from step {first}")
                checkpoint.delete(later)
                shutil.rmtree(run / "final", ignore_errors=True)  # of a run that went further
    except OSError as error:
        raise CheckpointError(f"run_dir={run}: {error}") from None
    return held


def check_position(start: Path, plan: BatchSampler, steps: int) -> int:
    """Steps already taken by the checkpoint; raises CheckpointError if it belongs to other data or has gone further than this run will."""
    numbers = checkpoint.read_numbers(start)
    if numbers["fingerprint"] != plan.position(numbers["step"])["fingerprint"]:
        raise CheckpointError(
            f"{start}: the training data has changed since this checkpoint was written (or its tokenizer or template)"
        )
    if (ranks := numbers.get("ranks", plan.world_size)) != plan.world_size:
        raise CheckpointError(
            f"{start}: was trained on {ranks} ranks, this run has {plan.world_size}: with strict_reproduction.summed_micro_batches=true "
            "that would change what is learned"
        )
    if numbers["step"] > steps:
        raise CheckpointError(
            f"{start}: has taken {numbers['step']} steps, more than the {steps} of this run"
        )
    return numbers["step"]


def _strict(config: Config) -> dict[str, Any]:
    """What environment.json says of strict_reproduction: nothing where its options are off."""
    on = dataclasses.asdict(config.strict_reproduction)
    return {"strict_reproduction": on} if any(on.values()) else {}


def environment() -> dict:
    """Machine, versions and command, as saved beside every run and result."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = (
        "adaptsft",
        "torch",
        "transformers",
        "datasets",
        "tokenizers",
        "safetensors",
        "numpy",
        "flash-attn",
        "triton",
    )
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": {"python": platform.python_version()}
        | {package: installed(package) for package in packages},
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "cuda": torch.version.cuda,
        },
        "world_size": world_size() if torch.distributed.is_initialized() else 1,
    }


def flops_per_token(model: PreTrainedModel, plan: BatchSampler) -> float:
    """Forward and backward of a token, on average (PaLM, arXiv:2204.02311, appendix B, but for what is not computed): 6 per parameter that
    multiplies it (an embedding only looks up, and the head sees target tokens only), and attention to the tokens before it."""
    config, data, head = model.config.get_text_config(), plan.data, head_of(model).weight
    multiplying = sum(parameter.numel() for parameter in model.parameters()) - head.numel()
    if head is not embedding_of(model).weight:
        multiplying -= embedding_of(model).weight.numel()
    tokens, lengths = float(data.lengths.sum()), data.lengths.astype(np.float64)
    multiplying += head.numel() * float(data.target_tokens.sum()) / tokens
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = (
        6.0 * config.num_hidden_layers * config.num_attention_heads * head_dim
    )  # per token attended to; causal: half of 12
    return 6.0 * multiplying + attention * float((lengths**2).sum()) / tokens


def log_run_header(
    config: Config,
    model: Any,
    attention: str,
    plan: BatchSampler,
    start: Path | None,
    steps: int,
    device: torch.device,
) -> None:
    """Say on rank 0 what is about to happen."""
    if start is not None:
        print0(f"resuming from {start}")
    for line in strict.describe(config, world_size()):
        print0(line)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    note = "" if trained == parameters else f" ({trained / 1e6:,.2f} M trained)"
    name, dtype = (
        type(model).__name__.removeprefix("FSDP"),
        str(compute_dtype(config.model, device)).removeprefix("torch."),
    )
    print0(
        f"model: {name}, {parameters / 1e6:,.2f} M parameters{note}, {dtype} on {world_size()} x {device.type}, attention by {attention}"
    )
    controller = config.controller
    moved = "" if controller.name == "fixed" else f", {controller.name} controller"
    loss = describe_implementation(
        device, compute_dtype(config.model, device), **model.loss_settings
    )
    print0(f"objective: {config.objective.name}{moved}; loss by adaptsft_kernels in {loss}")
    print0(
        f"plan: {steps:,} steps of {config.train.global_batch_size:,} examples = {plan.extent(steps)}"
    )
