"""Supervised fine-tuning, from a Hugging Face model and data to a Hugging Face checkpoint.

    torchrun --standalone --nproc-per-node 8 -m adaptsft.train CONFIG.yaml key=value …

`train` below is the whole loop, top to bottom. The loss of a step is the sum of the objective over its target tokens divided by
their number over all ranks and micro-batches, so the split changes nothing. The control (alpha, thresholds) of a step depends only
on the all-reduced statistics of earlier steps. Between two reads by `metrics.flush` (and evaluations, and checkpoints) the host never
waits for the device's current step, but for an objective with a mask: its loss asks, for every chunk, how many rows are left.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from adaptsft.config.reference import help_text
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.controllers.runtime import ControllerRuntime
from adaptsft.data.cache import TokenizedData, open_data
from adaptsft.data.loader import BatchLoader
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.stream import Stream
from adaptsft.distributed import checkpoint
from adaptsft.distributed.checkpoint import Checkpointer
from adaptsft.distributed.ranks import (
    check_same_config,
    mesh,
    print0,
    process_group,
    raise_on_all_ranks,
    rank,
    rank0_first,
    world_size,
)
from adaptsft.distributed.signals import Stopper, Watchdog
from adaptsft.errors import NonFiniteError, UserError
from adaptsft.model.build import (
    ShardedModel,
    build_model,
    check_fused_loss_matches_model,
    check_lengths,
    load_pretrained,
    reshard,
)
from adaptsft.model.export import export
from adaptsft.objectives.base import Objective
from adaptsft.objectives.build import build_objective, with_exempt
from adaptsft.objectives.state import ObjectiveState, controls, initial_state, per_token
from adaptsft.statistics import base_model as base_statistics
from adaptsft.statistics.step import StepStatistics
from adaptsft.training.metrics import Metrics
from adaptsft.training.optim import build_optimizer, guarded_step, learning_rate, scale_and_clip
from adaptsft.training.quantiles import with_quantiles
from adaptsft.training.run_folder import (
    check_position,
    check_same_checkpoint,
    find_start,
    flops_per_token,
    lock_run_dir,
    log_run_header,
)

PREEMPTED = 75  # exit code of a run that saved and stopped because it was asked to


def train(config: Config) -> dict[str, Any]:
    """Run a configuration to its end, or resume it. Returns the figures of the last step taken here, and of held-out data as `held_out`."""
    with process_group(config.train.device) as device, ExitStack() as stack:
        torch.use_deterministic_algorithms(config.train.deterministic)
        check_same_config(config)
        start = rank0_first(lambda: find_start(config))
        check_same_checkpoint(start)
        devices = mesh(device, config.train.replicas)
        pretrained = rank0_first(lambda: load_pretrained(config.model))
        stream = (
            stack.enter_context(Stream(config, pretrained.tokenizer, start))
            if config.data.stream
            else None
        )
        part = stream.part if stream else None
        data, held_out = rank0_first(
            lambda: open_data(
                config.data, pretrained.tokenizer, config.seed, print0, rank() == 0, part
            )
        )
        check_lengths(pretrained, data, held_out)
        tasks = rank0_first(lambda: held_out_tasks(config, pretrained.tokenizer))
        plan = BatchSampler(data, config, world_size(), part)
        steps = config.train.max_steps or plan.steps(config.train.epochs)

        objective = with_exempt(
            build_objective(config.objective), config.objective, pretrained.tokenizer, device
        )
        strict = config.strict_reproduction
        model, attention = build_model(
            config.model, config.train, pretrained, devices, device, strict.bf16_masters
        )
        optimizer = build_optimizer(model, config.train)
        control = initial_state(config.objective, len(data.names), device)
        statistics = StepStatistics(len(data.names), device)
        base, base_logp = raise_on_all_ranks(
            lambda: base_statistics.read(config.controller, pretrained.folder, data, device)
        )
        load_step = BatchLoader(
            plan,
            config,
            pretrained.tokenizer.pad_token_id or 0,
            attention == "sdpa",
            device,
            base_logp,
        )
        stack.callback(load_step.pool.shutdown)
        check_fused_loss_matches_model(model, *load_step(plan.first)[0], config.train.loss_chunk)
        if start is None:
            first = 0
            tokens = int(data.target_tokens.sum())
            control = with_quantiles(
                model,
                config.objective,
                control,
                load_step.in_order(data),
                tokens,
                config.train.loss_chunk,
                base,
            )
        else:
            first = rank0_first(lambda: check_position(start, plan, steps))
        steering = ControllerRuntime(
            config.controller,
            config.train,
            steps,
            control,
            None if base is None else base.signals(),
        )
        control = steering.first
        if start is not None:
            checkpoint.load(start, model, optimizer, steering.tensors(control))

        held = raise_on_all_ranks(lambda: lock_run_dir(config, first))
        if held is not None:
            stack.enter_context(held)
        log_run_header(config, model, attention, plan, start, steps, device)
        kept_only = config.objective.normalizer == "kept"
        run = Path(config.run_dir)
        metrics = Metrics(
            run,
            data.names,
            steps,
            first,
            config.log.tensorboard,
            objective,
            kept_only,
            flops_per_token(model, plan),
            lambda step: plan.where(step - 1),
            device,
        )
        saver = Checkpointer(
            run / "checkpoints",
            config.checkpoint.keep_last,
            config.checkpoint.async_save,
            config.checkpoint.on_error,
        )
        stack.callback(metrics.close)
        stack.callback(saver.close)
        stopper = stack.enter_context(Stopper())
        watchdog = stack.enter_context(Watchdog(config.train.hang_timeout))
        result: dict[str, Any] = {}

        def evaluate_held_out(step: int) -> None:
            if held_out is not None:
                with metrics.paused():
                    result["held_out"] = evaluate(
                        model, held_out, objective, control, load_step, metrics, step, watchdog
                    )
            if tasks:
                from adaptsft.evals import in_training

                with metrics.paused():
                    found = in_training.evaluate(
                        model, pretrained.tokenizer, tasks, beat=lambda: watchdog.beat(step)
                    )
                    result["tasks"] = metrics.tasks(step, found)

        if first == 0 and config.eval.every > 0:
            evaluate_held_out(0)
        for step in range(first, steps):
            watchdog.beat(step + 1)
            if stream is not None:
                plan = load_step.plan = stream.plan_of(step, plan, watchdog)
            torch.manual_seed(
                hash((config.seed, step, rank()))
            )  # dropout is a function of where we are: nothing to save
            statistics.buffer.zero_()
            micro_batches = load_step(step, prefetch=step + 1 < min(steps, plan.end))
            scale = 1.0 / (world_size() if strict.summed_micro_batches else plan.valid_tokens(step))
            for number, (batch, documents) in enumerate(micro_batches):
                model.set_requires_gradient_sync(
                    config.train.reduce_every_micro_batch or number + 1 == len(micro_batches)
                )
                loss, rows = model.token_loss(
                    batch, documents, objective, control, scale, config.train.loss_chunk
                )
                kept = objective.keep(
                    rows,
                    per_token(*controls(control, batch.source, batch.targets, objective.exempt)),
                )
                if (
                    strict.summed_micro_batches
                ):  # the average over this micro-batch; its tokens are counted on the device
                    loss = loss / (kept if kept_only else torch.ones_like(kept)).sum().clamp(min=1)
                loss.backward()
                statistics.add(rows, kept, batch)

            stopper.ask(statistics.stop)
            statistics.all_reduce()
            tokens = statistics.column("tokens").sum()
            normalizer = torch.ones_like(tokens)
            if kept_only and not strict.summed_micro_batches:
                normalizer = tokens / statistics.column("kept").sum().clamp(min=1.0)
            if config.objective.unit_mass:
                normalizer = normalizer / control.mass[0].clamp(0.25, 4.0)
            grad_norm = scale_and_clip(model, normalizer.float(), config.train.clip_norm)
            skip = 1.0 - (grad_norm + statistics.column("loss").sum()).isfinite().float()
            lr = learning_rate(step, steps, config.train)
            guarded_step(optimizer, lr, skip)
            done, last = step + 1, step + 1 == steps
            host = {"lr": lr, "epoch": plan.epoch(done), "all_tokens": plan.tokens(step)}
            if strict.summed_micro_batches:
                host["micro_batches"] = len(micro_batches)
            metrics.record(done, statistics, control, grad_norm, skip, **host)
            control = steering.advance(control, statistics, skip, done)

            stopping = stopper.asked(statistics.stop) and not last
            saving = last or stopping or is_due(done, config.checkpoint.every)
            if saving or is_due(done, config.log.every) or done == plan.end:
                result |= metrics.flush()[-1]
                if metrics.longest_skip >= config.train.max_nonfinite_steps:
                    raise NonFiniteError(
                        f"by step {done}, {metrics.longest_skip} steps in a row had a loss or gradient that is not finite"
                    )
            evaluating = last or is_due(done, config.eval.every)
            if evaluating and not stopping:
                evaluate_held_out(done)
            if saving:
                with metrics.paused():
                    saver.save(
                        done, model, optimizer, steering.tensors(control), plan.position(done)
                    )
            if stopping:
                saver.wait()
                if evaluating:  # only now: whoever asks kills after half a minute or so
                    evaluate_held_out(done)
                print0(f"asked to stop: saved after step {done}; resume=auto goes on from there")
                return result | {"stopped": True}

        saver.wait()
        watchdog.over.set()
        if first == steps and (run / "final").is_dir():
            print0(f"{run} is finished already")
            return result
        export(model, pretrained, run / "final", config.checkpoint.export_dtype)
        print0(
            f"{run / 'final'} is a Hugging Face model; talk to it: python -m adaptsft.chat {run}"
        )
        return result


def is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@torch.no_grad()
def evaluate(
    model: ShardedModel,
    data: TokenizedData,
    objective: Objective,
    control: ObjectiveState,
    batches: BatchLoader,
    metrics: Metrics,
    step: int,
    watchdog: Watchdog,
) -> dict[str, Any]:
    """NLL, mean p, the objective's loss and the other statistics of the held-out data, over all ranks."""
    model.eval()
    statistics = StepStatistics(len(data.names), control.alpha.device)
    for batch, documents in batches.in_order(data):
        watchdog.beat(step)
        _, rows = model.token_loss(
            batch, documents, objective, control, 1.0, batches.config.train.loss_chunk
        )
        kept = objective.keep(
            rows, per_token(*controls(control, batch.source, batch.targets, objective.exempt))
        )
        statistics.add(rows, kept, batch)
    reshard(model)
    model.train()
    statistics.all_reduce()
    return metrics.evaluation(step, data.names, statistics)


def held_out_tasks(config: Config, tokenizer: Any) -> list[Any]:
    """The tasks of eval.tasks, ready to be answered."""
    settings = config.eval
    if not settings.tasks:
        return []
    from adaptsft.evals import in_training

    folder = Path(settings.data_dir) if settings.data_dir else None
    return in_training.prepare(
        settings.tasks, folder, settings.limit, settings.max_tokens, tokenizer, config.data
    )


def main(arguments: list[str]) -> int:
    if not arguments or "--help" in arguments or "-h" in arguments:
        if rank() == 0:
            print(help_text())
        return 0 if arguments else 2
    try:
        result = train(load_config(arguments))
    except UserError as error:
        if (
            int(os.environ.get("LOCAL_RANK", 0)) == 0
        ):  # each node has its own command line, and may be the only one with an error
            print(f"adaptsft.train: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return PREEMPTED if result.get("stopped") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
