"""Memory per GPU and steps of a run, before anything is loaded: the arguments of adaptsft.train, and how many GPUs of which size.

    python -m adaptsft.plan CONFIG.yaml key=value … [--gpus N] [--gpu-memory GiB]

Where the figures come from is told in adaptsft/analysis/memory.py. A plan fits where it leaves 10 % of the GPU to what is not counted there.
"""

import argparse
import dataclasses
import sys
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from adaptsft.analysis.memory import trace
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.shards import cut, list_files
from adaptsft.data.tokenized import open_data
from adaptsft.errors import ConfigError, UserError

GIB = 2**30
USABLE = 0.9  # share of a GPU's memory that tensors may take


def micro_batches(config: Config, gpus: int, tokenizer: Any) -> tuple[list[str], int]:
    """(lines about data and steps, micro-batches of a step). Tokenises the data if it is not in the cache; without data it guesses."""
    train = config.train
    try:
        if tokenizer is None:
            raise ConfigError(f"model.path={config.model.path} has no tokenizer that can be read")
        shard = cut(config, list_files(config.data), 0, 0) if config.data.stream else None
        data, _ = open_data(
            config.data,
            tokenizer,
            config.seed,
            log=lambda line: print(line, file=sys.stderr),
            shard=shard,
        )
        plan = BatchSampler(data, config, gpus, shard)
        steps = train.max_steps or plan.steps(train.epochs)
    except UserError as error:
        guess = -(-train.global_batch_size // (gpus * train.micro_batch_size))
        return [
            f"steps: unknown, the data cannot be opened: {error}",
            f"assumed: {guess} micro-batches per step (no packing)",
        ], guess
    sample = range(min(steps, 50, plan.end))
    most = max(len(plan.micro_batches(step, 0)) for step in sample)
    tokens = sum(plan.tokens(step) for step in sample) / len(sample)
    return [
        f"steps: {steps:,} of {train.global_batch_size:,} examples, {plan.extent(steps)}",
        f"tokens: about {tokens:,.0f} per step and {tokens * steps:,.0f} in all; up to {most} micro-batches per rank and step",
    ], most


def advice(
    config: Config, model_config: Any, gpu: bool, gpus: int, count: int, limit: float
) -> list[str]:
    """Changes that would help, with the peak each leads to on its own, and whether it fits then."""
    train, changes = config.train, []
    if train.micro_batch_size > 1:
        changes.append(
            (
                "train.micro_batch_size=1",
                {"micro_batch_size": 1},
                gpus,
                count * train.micro_batch_size,
            )
        )
    for mode in {"none": ("per_op", "full"), "per_op": ("full",), "full": ()}[
        train.activation_checkpointing
    ]:
        changes.append(
            (
                f"train.activation_checkpointing={mode}",
                {"activation_checkpointing": mode},
                gpus,
                count,
            )
        )
    if train.loss_chunk == 0 or train.loss_chunk > 1024:
        changes.append(("train.loss_chunk=1024", {"loss_chunk": 1024}, gpus, count))
    if train.replicas > 1:
        changes.append(("train.replicas=1", {"replicas": 1}, gpus, count))
    if count > 1 and not train.reduce_every_micro_batch:
        changes.append(
            ("train.reduce_every_micro_batch=true", {"reduce_every_micro_batch": True}, gpus, count)
        )
    if count > 1:
        name = f"one micro-batch per step (train.global_batch_size={train.global_batch_size // count} or {count} times the GPUs)"
        changes.append((name, {}, gpus, 1))
    changes.append((f"--gpus {2 * gpus}", {}, 2 * gpus, max(1, count // 2)))
    if (
        config.train.loss_reduction == "micro_batch"
    ):  # the number of micro-batches, and who shares one, are part of what is learned
        changes = [change for change in changes if change[2:] == (gpus, count)]
    lines = []
    for name, settings, ranks, number in changes:
        changed = dataclasses.replace(config, train=dataclasses.replace(train, **settings))
        peak = trace(changed, model_config, gpu, ranks, number)[0].peak
        lines.append(f"  {name}: {peak / GIB:.2f} GiB{', fits' if peak <= limit else ''}")
    return lines


def report(config: Config, gpus: int, gpu_memory: float | None) -> tuple[list[str], bool]:
    """(what is printed, whether it fits; True where the size of the GPU is not known)."""
    try:
        model_config = AutoConfig.from_pretrained(
            config.model.path,
            revision=config.model.revision,
            trust_remote_code=config.model.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path={config.model.path}: {str(error).strip()}") from None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            config.model.tokenizer or config.model.path,
            trust_remote_code=config.model.trust_remote_code,
        )
        tokenizer.add_tokens(config.model.add_tokens)
        settings = model_config.get_text_config()
        settings.vocab_size = max(settings.vocab_size, len(tokenizer))
    except (OSError, ValueError):
        tokenizer = None
    gpu = config.train.device != "cpu"
    lines, count = micro_batches(config, gpus, tokenizer)
    memory, parameters, trained = trace(config, model_config, gpu, gpus, count)
    device = "GPU" if gpu else "rank"
    shape = f"{config.train.micro_batch_size} x {config.data.max_length:,} tokens, checkpointing {config.train.activation_checkpointing}"
    masters = config.model.param_dtype
    rows = [
        (f"parameters, {masters}", memory.parameters, "exact"),
        (f"AdamW moments, {masters}", memory.moments, "exact"),
        (f"gradients, {masters}", memory.gradients, "exact; sharded, in the optimizer step"),
        (
            f"gradients, {'sharded' if memory.reduces else 'whole'}",
            memory.accumulated,
            f"formula; while {count} micro-batches accumulate",
        ),
        ("parameters gathered for use", memory.gathered, "formula"),
        ("activations kept", memory.kept, f"traced; {shape}"),
        ("activations, backward pass", memory.highest, "traced; with what is recomputed"),
        ("loss: logits and gradients", memory.loss, "formula; if every token is learned"),
    ]
    model = f"model: {model_config.model_type}, {parameters / 1e6:,.2f} M parameters, {trained / 1e6:,.2f} M trained"
    lines = [model, *lines, f"memory per {device}, {gpus} in all, GiB:"]
    lines += [f"  {name:30}{size / GIB:10.3f}   {kind}" for name, size, kind in rows if size]
    when = max(memory.stages, key=lambda name: memory.stages[name])
    lines.append(f"  {'peak':30}{memory.peak / GIB:10.3f}   {when}; these are not all held at once")
    if gpu_memory is None:
        return [*lines, "whether it fits: give --gpu-memory GiB"], True
    limit = USABLE * gpu_memory * GIB
    if memory.peak <= limit:
        return [*lines, f"fits: {gpu_memory:g} GiB, of which {USABLE:.0%} for tensors"], True
    lines.append(
        f"does not fit {gpu_memory:g} GiB, of which {USABLE:.0%} for tensors. Each of these alone:"
    )
    return lines + advice(config, model_config, gpu, gpus, count, limit), False


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m adaptsft.plan",
        description="Memory per GPU and steps of a run, before it is started.",
    )
    parser.add_argument(
        "settings",
        nargs="+",
        metavar="CONFIG.yaml | key=value",
        help="as for adaptsft.train; the data is tokenised",
    )
    parser.add_argument("--gpus", type=int, default=1, help="ranks of the run (1)")
    here = (
        torch.cuda.get_device_properties(0).total_memory / GIB
        if torch.cuda.is_available()
        else None
    )
    parser.add_argument(
        "--gpu-memory",
        type=float,
        default=here,
        metavar="GIB",
        help="of one GPU (that of this machine's, if it has one)",
    )
    given = parser.parse_intermixed_args(arguments)
    try:
        lines, fits = report(load_config(given.settings), given.gpus, given.gpu_memory)
    except UserError as error:
        print(f"adaptsft.plan: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
