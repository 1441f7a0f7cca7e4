"""Resuming, in its order.

1. `run_folder.find_checkpoint`, before anything is loaded: which checkpoint, and is it whole?
2. `resume_or_prepare`, once model and data are there: does it belong to them? Load it; or compute
   the quantile thresholds of a new run.
3. Lock the run folder, and delete what lies after the step from which the run continues.
4. `Metrics` then drops the lines of later steps, and so do trackers, or they pass them over.

The order of the data and dropout are functions of the step: there is nothing else to restore.
"""

import shutil
from pathlib import Path
from typing import TextIO

from torch.optim import Optimizer

from adaptsft.config.schema import Config
from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.data.loader import BatchLoader
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed import checkpoint
from adaptsft.distributed.ranks import (
    print0,
    raise_on_all_ranks,
    rank,
    rank0_first,
)
from adaptsft.errors import CheckpointError
from adaptsft.files import lock
from adaptsft.model.fsdp import ShardedModel
from adaptsft.statistics.base_model import BaseStatistics
from adaptsft.training.quantiles import set_quantile_thresholds
from adaptsft.training.run_folder import train_on, write_what_is_run
from adaptsft.training.setup import Run


def resume_or_prepare(
    run: Run,
    model: ShardedModel,
    optimizer: Optimizer,
    objective: AdaptiveObjective,
    data: TrainingData,
    loader: BatchLoader,
    base: BaseStatistics | None,
) -> int:
    """Load the run's checkpoint into model, optimizer and objective, or compute the quantile
    thresholds of a new run; then lock the run folder and write the configuration into it. Returns
    the steps taken."""
    first = 0
    if run.checkpoint is None:
        set_quantile_thresholds(model, run.config.objective, objective, data.train, loader, base)
    else:
        found = run.checkpoint
        first = rank0_first(lambda: check_position(found, data))
        checkpoint.load(found, model, optimizer, objective.tensors())
    skipped = data.train.skipped + (data.held_out.skipped if data.held_out else [])
    chosen = {"attention": model.attention_backend, "compile": str(model.compilation)}
    if held := raise_on_all_ranks(lambda: lock_run_dir(run.config, first, chosen, skipped)):
        run.enter(held)
    return first


def check_position(found: Path, data: TrainingData) -> int:
    """Steps taken by the checkpoint; raises CheckpointError if it belongs to other data or has gone
    further than this run will."""
    numbers, sampler = checkpoint.read_run_state(found), data.sampler
    if numbers["fingerprint"] != data.position(numbers["step"])["fingerprint"]:
        raise CheckpointError(
            f"{found}: the training data has changed since this checkpoint was written (or its "
            f"tokenizer or template){train_on(found.parent.parent)}"
        )
    if (ranks := numbers.get("ranks", sampler.world_size)) != sampler.world_size:
        raise CheckpointError(
            f"{found}: was trained on {ranks} ranks, this run has {sampler.world_size}: with "
            "train.loss_reduction=micro_batch that would change what is learned"
        )
    if numbers["step"] > data.steps:
        raise CheckpointError(
            f"{found}: has taken {numbers['step']} steps, more than the {data.steps} of this run"
            f"{train_on(found.parent.parent)}"
        )
    return numbers["step"]


def lock_run_dir(
    config: Config, first: int, chosen: dict[str, str], skipped: list[str]
) -> TextIO | None:
    """On rank 0, lock the run folder and write into it what is run, now that all is in order.

    Checkpoints of later steps, there if the run continues from an earlier one, are deleted: they
    would be taken for its own.
    """
    run = Path(config.run_dir)
    if rank() != 0:
        return None
    try:
        run.mkdir(parents=True, exist_ok=True)
        held = lock(run)
        write_what_is_run(config, chosen, skipped)
        for later in checkpoint.complete_checkpoints(run / "checkpoints"):
            if int(later.name.removeprefix("step_")) > first:
                print0(f"deleting {later}: this run continues from step {first}")
                checkpoint.delete(later)
                shutil.rmtree(run / "final", ignore_errors=True)  # of a run that went further
    except OSError as error:
        raise CheckpointError(f"run_dir={run}: {error}") from None
    return held
