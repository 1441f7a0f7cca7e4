"""Supervised fine-tuning, from a Hugging Face model and data to a Hugging Face checkpoint.

    torchrun --standalone --nproc-per-node 8 -m adaptsft.train CONFIG.yaml key=value …

`train` below is the whole loop, top to bottom. By default the loss of a step is the sum of the
objective over its target tokens divided by their number over all ranks and micro-batches, so that
the split changes nothing; training/normalizer.py has the exceptions. The state of the objective
(alpha, thresholds) in a step depends only on the all-reduced statistics of earlier steps.

The host waits for the device in `metrics.flush` and `metrics.paused` (evaluations, checkpoints), in
`stopper.poll` for the step before, so that it is at most one step ahead, and in the loss of an
objective with a mask, which reads the number of kept tokens of every chunk; with a mixture of
experts also in every product of experts where that is no single kernel (model/experts.py).
"""

import sys

from adaptsft.command_line import first_answer, print_error

if __name__ == "__main__" and (code := first_answer(sys.argv[1:])) is not None:
    sys.exit(code)  # --help, a misspelt key, a missing folder: before torch is imported

from typing import Any

import torch

from adaptsft.analysis.fit import resolve_auto
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config, is_packed
from adaptsft.data.loader import BatchLoader
from adaptsft.data.stop import turn_end
from adaptsft.data.template import Template
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.checkpoint import Checkpointer
from adaptsft.distributed.ranks import print0, rank, rank0_first
from adaptsft.errors import UserError
from adaptsft.model.build import build_model
from adaptsft.model.check import check_first_batch
from adaptsft.model.context_parallel import check_heads
from adaptsft.model.export import export
from adaptsft.model.fsdp import before_micro_batch
from adaptsft.model.pretrained import check_fits_model, load_pretrained
from adaptsft.model.supported import check_verified, choose_packing
from adaptsft.training.cadence import due_after
from adaptsft.training.evaluation import Evaluator, prepare_tasks
from adaptsft.training.garbage import GarbageCollection
from adaptsft.training.header import log_run_header
from adaptsft.training.hub import push
from adaptsft.training.metrics import Metrics
from adaptsft.training.model_card import model_card
from adaptsft.training.normalizer import LossNormalizer
from adaptsft.training.objective import base_statistics, base_tokens, configured_objective
from adaptsft.training.optim import (
    build_optimizer,
    clipped,
    guarded_step,
    learning_rate,
    progress_at,
)
from adaptsft.training.profile import Profile
from adaptsft.training.resume import resume_or_prepare
from adaptsft.training.run_folder import train_on
from adaptsft.training.setup import open_run

PREEMPTED = 75  # exit code of a run that was asked to stop, and saved


def train(config: Config) -> dict[str, Any]:
    """Run a configuration to its end, or resume it.

    Returns the figures of the last step taken here, and of held-out data as `held_out`.
    """
    with open_run(config) as run:
        pretrained = rank0_first(lambda: load_pretrained(config.model))
        if padded := choose_packing(config, pretrained.config):
            print0(padded)
        packing, parts = is_packed(config.data), config.train.context_parallel
        check_verified(config.model, pretrained.config, packing, parts)
        check_heads(parts, pretrained.config)
        end = turn_end(Template(pretrained.tokenizer, config.data))
        data = run.enter(TrainingData(config, pretrained.tokenizer, run.checkpoint))
        resolve_auto(config, pretrained.config, data, run.device)
        check_fits_model(config, pretrained, data.train, data.held_out)
        tasks = prepare_tasks(config, pretrained.tokenizer)
        model = build_model(
            config.model,
            config.train,
            pretrained,
            run.mesh,
            run.device,
            config.seed,
            packing,
            config.objective.normalizer,
        )
        routers = model.routers
        optimizer = build_optimizer(model, config.train)
        base = base_statistics(config, pretrained, data.train, run.device)
        objective = configured_objective(config, pretrained, data, optimizer, base)
        objective.statistics.make_room(routers.size)
        objective.statistics.counts = model.counts
        reference = base_tokens(objective.function, config, pretrained, data.train)
        in_buckets, compiled = model.needs_buckets, model.compilation.on
        loader = BatchLoader(
            data, config, pretrained.pad_id, in_buckets, run.device, reference, compiled
        )
        run.enter(loader)
        check_first_batch(model, loader.first_batch(), packing)

        first = resume_or_prepare(run, model, optimizer, objective, data, loader, base)
        log_run_header(run, model, data, loader, end)
        profile = run.enter(Profile(config.log.profile, run.folder, first, data.steps))
        garbage = run.enter(GarbageCollection(config.train.gc_every))
        metrics = run.enter(Metrics(run, model, objective, data, first))
        checkpointer = run.enter(Checkpointer(run.folder / "checkpoints", config.checkpoint))
        evaluator = Evaluator(run, model, objective, loader, metrics, pretrained.tokenizer, tasks)
        normalizer = LossNormalizer(config)
        run.enter(run.stopper)  # from here on, a request to stop saves first,
        run.enter(run.watchdog)  # and a rank that hangs ends
        if first == 0 and config.eval.every > 0:
            run.result |= evaluator.evaluate(0)

        for step in range(first, data.steps):
            run.watchdog.beat(step + 1)
            profile.before(step)
            garbage.before(step)
            # dropout is a function of where we are: a checkpoint holds no random state
            seed = hash((config.seed, step, rank()))
            torch.manual_seed(seed)
            data.advance(step, run.watchdog)  # of a stream, to the shard that holds the step
            micro_batches = loader.step(step)
            normalizer.start_step(step, data)
            uncorrected = normalizer.uncorrected(objective.state)
            routers.start_step(model, micro_batches, data.sampler.tokens(step), seed, uncorrected)
            for batch in micro_batches:
                before_micro_batch(model, config.train, last=batch is micro_batches[-1])
                loss, tokens, kept = model.token_loss(
                    batch, objective.function, objective.state, normalizer.scale
                )
                routers.add_loss(normalizer.micro_batch_loss(loss, kept)).backward()
                objective.count(tokens, kept, batch)

            statistics = objective.statistics
            routers.write(statistics.others)
            run.stopper.write_request(statistics.stop)
            objective.all_reduce()
            correction = normalizer.correction(statistics, objective.state)
            grad_norm, divisor = clipped(model, correction, config.train.clip_norm)
            # a step whose loss or gradient is not finite is skipped, on the device
            skip = 1.0 - (grad_norm + statistics.column("loss").sum()).isfinite().float()
            lr = learning_rate(step, data.steps, config.train)
            # the learning rate times objective.lr_scale, by a hook of its own
            guarded_step(optimizer, lr, skip, divisor)
            metrics.record(step, objective, grad_norm, skip, lr, micro_batches)

            # the controller moves the objective: to where the run will be in the next step
            objective.step(skipped=skip, progress=progress_at(step + 1, data.steps, config.train))

            due = due_after(step, data, config, run.stopper.poll(statistics.stop))
            if due.log:
                run.result |= metrics.flush()[-1]
            if due.evaluate and not due.stop:
                run.result |= evaluator.evaluate(step + 1)
            if due.save:
                with metrics.paused():
                    checkpointer.save(
                        step + 1, model, optimizer, objective.tensors(), data.position(step + 1)
                    )
            if due.stop:  # saved first: schedulers kill half a minute or so after they ask
                checkpointer.wait()
                if due.evaluate:
                    run.result |= evaluator.evaluate(step + 1)
                print0(f"asked to stop: saved after step {step + 1}; resume=auto continues there")
                return run.result | {"stopped": True}

        profile.before(data.steps)
        checkpointer.wait()
        run.watchdog.stop()
        if first == data.steps and (run.folder / "final").is_dir():
            print0(f"{run.folder} is finished already{train_on(run.folder)}")
        else:
            card, final = model_card(config, data.steps, run.result), run.folder / "final"
            kind = export(model, pretrained, final, config.checkpoint.export_dtype, end, card)
            print0(f"{final} is {kind}; talk to it: python -m adaptsft.chat {run.folder}")
    if rank() == 0:  # the ranks have parted: an upload may take longer than they would wait
        push(config)
    return run.result


def main(arguments: list[str]) -> int:
    if (code := first_answer(arguments)) is not None:
        return code
    try:
        result = train(load_config(arguments))
    except UserError as error:
        return print_error("adaptsft.train", error)
    return PREEMPTED if result.get("stopped") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
