"""Memory per GPU and steps of a run, before anything is loaded: the arguments of adaptsft.train,
and how many GPUs of which size.

    python -m adaptsft.plan CONFIG.yaml key=value … [--gpus N] [--gpu-memory GiB]

Where the figures come from: adaptsft/analysis/memory.py. A plan fits where it leaves 10 % of the
GPU to what is not counted there.
"""

import argparse
import sys
from typing import Any

from adaptsft.command_line import first_answer, print_error
from adaptsft.errors import ConfigError, UserError, reason_of


def parse(arguments: list[str]) -> argparse.Namespace:
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
    parser.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GIB",
        help="of one GPU (that of this machine's, if it has one)",
    )
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":  # --help, a misspelt key, a missing folder: before torch is imported
    if (code := first_answer(parse(sys.argv[1:]).settings, "adaptsft.plan")) is not None:
        sys.exit(code)

import torch
from transformers import AutoConfig

from adaptsft.analysis.advice import advice
from adaptsft.analysis.fit import GIB, USABLE, choose, with_choice
from adaptsft.analysis.trace import trace
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config, is_packed, packs_at_once
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.shards import list_files, make_shard
from adaptsft.data.tokenized import open_data
from adaptsft.model.pretrained import check_not_quantized, load_tokenizer, text_config_of
from adaptsft.model.supported import check_verified, choose_packing


def report(config: Config, gpus: int, gpu_memory: float | None) -> tuple[list[str], bool]:
    """(what is printed, whether it fits; True where the size of the GPU is not known)."""
    model_config, tokenizer = load_configs(config)
    padded = choose_packing(config, model_config)
    check_verified(config.model, model_config, is_packed(config.data))
    gpu = config.train.device != "cpu"
    lines, packs = steps_of(config, gpus, tokenizer)
    lines[:0] = [padded] if padded else []
    size_known = gpu_memory * GIB if gpu and gpu_memory else 0
    choice = choose(config, model_config, gpus, size_known, packs)
    config = with_choice(config, choice)
    train, masters = config.train, config.model.param_dtype
    count = -(-packs // (gpus * packs_at_once(train)))
    lines += [f"micro-batches: up to {count} per rank and step", *choice.lines]
    memory, parameters, trained, _ = trace(config, model_config, gpu, gpus, count)
    apart = memory.frozen_parameters if config.model.lora.rank else 0
    shape = (
        f"{train.micro_batch_size} x {config.data.max_length:,} tokens, "
        f"checkpointing {train.activation_checkpointing}"
    )
    accumulated = f"gradients, {'sharded' if memory.reduces else 'whole'}"
    table = [
        (f"parameters, {masters}", memory.parameters - apart, "exact"),
        (f"parameters, frozen, {'bf16' if memory.frozen == 2 else 'fp32'}", apart, "exact"),
        (f"AdamW moments, {masters}", memory.moments, "exact"),
        (f"gradients, {masters}", memory.gradients, "exact; sharded, in the optimizer step"),
        (accumulated, memory.accumulated, f"formula; while {count} micro-batches accumulate"),
        ("parameters gathered for use", memory.gathered, f"formula; reshard {train.reshard}"),
        ("activations kept", memory.kept, f"traced; {shape}"),
        ("activations, backward pass", memory.highest, "traced; with what is recomputed"),
        ("loss: logits and gradients", memory.loss, "formula; if every token is a target"),
    ]
    lines = [
        f"model: {model_config.model_type}, {parameters / 1e6:,.2f} M parameters, "
        f"{trained / 1e6:,.2f} M trained",
        *lines,
        f"memory per {'GPU' if gpu else 'rank'}, {gpus} in all, GiB:",
    ]
    lines += [f"  {name:30}{size / GIB:10.3f}   {kind}" for name, size, kind in table if size]
    when = max(memory.stages, key=lambda name: memory.stages[name])
    lines.append(f"  {'peak':30}{memory.peak / GIB:10.3f}   {when}; these are not all held at once")
    if gpu_memory is None:
        return [*lines, "whether it fits: give --gpu-memory GiB"], True
    limit = USABLE * gpu_memory * GIB
    size = f"{gpu_memory:g} GiB, of which {USABLE:.0%} for tensors"
    if memory.peak <= limit:
        return [*lines, f"fits: {size}"], True
    lines.append(f"does not fit {size}. Each of these alone:")
    for name, peak in advice(config, model_config, gpu, gpus, count):
        lines.append(f"  {name}: {peak / GIB:.2f} GiB{', fits' if peak <= limit else ''}")
    return lines, False


def load_configs(config: Config) -> tuple[Any, Any]:
    """config.json, with the vocabulary that training would have, and the tokenizer, or None where
    it cannot be read. Raises ConfigError."""
    model = config.model
    try:
        model_config = AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except Exception as error:  # also what the code of a model raises that comes with its own
        raise ConfigError(f"model.path={model.path}: {reason_of(error)}") from None
    check_not_quantized(model, model_config)
    settings = text_config_of(model, model_config)
    try:
        tokenizer = load_tokenizer(model, model.path)
    except ConfigError:
        return model_config, None
    tokenizer.add_tokens(model.add_tokens)
    settings.vocab_size = max(settings.vocab_size, len(tokenizer))
    return model_config, tokenizer


def steps_of(config: Config, gpus: int, tokenizer: Any) -> tuple[list[str], int]:
    """(lines about data and steps, packs of the largest step). Tokenises the data if it is not in
    the cache; without data it guesses."""
    train = config.train
    try:
        if tokenizer is None:
            raise ConfigError(f"model.path={config.model.path} has no tokenizer that can be read")
        shard = make_shard(config, list_files(config.data), 0, 0) if config.data.stream else None
        data, _ = open_data(
            config.data,
            tokenizer,
            config.seed,
            log=lambda line: print(line, file=sys.stderr),
            shard=shard,
        )
        sampler = BatchSampler(data, config, gpus, shard)
        steps = train.max_steps or sampler.steps(train.epochs)
    except UserError as error:
        guess = train.global_batch_size
        return [
            f"steps: unknown, the data cannot be opened: {error}",
            f"assumed: {guess} packs per step (no packing)",
        ], guess
    sample = range(min(steps, 50, sampler.end))
    tokens = sum(sampler.tokens(step) for step in sample) / len(sample)
    return [
        f"steps: {steps:,} of {train.global_batch_size:,} examples, {sampler.extent(steps)}",
        f"tokens: about {tokens:,.0f} per step and {tokens * steps:,.0f} in all",
    ], sampler.most_packs(steps)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    gpu_memory = options.gpu_memory
    if gpu_memory is None and torch.cuda.is_available():
        gpu_memory = torch.cuda.get_device_properties(0).total_memory / GIB
    try:
        lines, fits = report(load_config(options.settings), options.gpus, gpu_memory)
    except UserError as error:
        return print_error("adaptsft.plan", error)
    print("\n".join(lines))
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
