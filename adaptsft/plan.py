"""Memory per GPU, communication and time of a run's steps, before anything is loaded: the arguments
of adaptsft.train, and how many GPUs of which kind.

    python -m adaptsft.plan CONFIG.yaml key=value … [--gpus N] [--gpu NAME] [--gpu-memory GiB]

Where the figures come from: adaptsft/analysis/memory.py, and scaling.py beside it. A plan fits
where it leaves 10 % of the GPU to what is not counted there.
"""

import argparse
import dataclasses
import sys
from typing import Any

from adaptsft.command_line import first_answer, print_error
from adaptsft.errors import ConfigError, UserError, reason_of


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m adaptsft.plan",
        description="Memory per GPU, communication and time of a run's steps, before it starts.",
        epilog="Of a model only config.json and the tokenizer are needed, of GPUs none. Where a "
        "run does not fit, or would be faster otherwise, the change is printed with what it gives. "
        "Example: python -m adaptsft.plan configs/sft.yaml model.path=… data.path=… run_dir=… "
        "--gpus 64 --gpu H100 train.replicas=8",
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
        help="of one GPU (that of --gpu, or of this machine's, if it has one)",
    )
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="H100, 'H100 PCIe', H200, GH200, B200, GB200, A100, 'A100 PCIe 40GB', L40S, 4090, … "
        "(a name that is not known lists all): its memory, and by its data sheet an estimate of "
        "communication and time (that of this machine's, if it has one)",
    )
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="joined by NVLink or PCIe (8)"
    )
    parser.add_argument(
        "--network",
        type=float,
        metavar="GB/S",
        help="between nodes, of every GPU, each way (50, an adapter of 400 Gb/s each)",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        metavar="SHARE",
        help="of the peak that products and attention reach by themselves (by default a range, "
        "published for H100 and A100, assumed for others); of a run on one GPU the log says MFU",
    )
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":  # --help, a misspelt key, a missing folder: before torch is imported
    if (code := first_answer(parse(sys.argv[1:]).settings, "adaptsft.plan")) is not None:
        sys.exit(code)

import torch
from transformers import AutoConfig

from adaptsft.analysis.advice import advice, faster, paced
from adaptsft.analysis.fit import GIB, USABLE, choose, one_pack, with_choice
from adaptsft.analysis.scaling import NETWORK, Cluster
from adaptsft.analysis.trace import Traced
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config, TrainConfig, is_packed, packs_at_once
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.shards import list_files, make_shard
from adaptsft.data.tokenized import open_data
from adaptsft.model.pretrained import check_not_quantized, load_tokenizer, text_config_of
from adaptsft.model.supported import check_verified, choose_packing
from adaptsft.training.flops import describe
from adaptsft.training.gpus import GB, gpu_of, named_gpu


def report(
    config: Config, gpus: int, gpu_memory: float | None, cluster: Cluster | None
) -> tuple[list[str], bool]:
    """(what is printed, whether it fits; True where the size of the GPU is not known)."""
    model_config, tokenizer = load_configs(config)
    padded = choose_packing(config, model_config)
    packing, parts = is_packed(config.data), config.train.context_parallel
    check_verified(config.model, model_config, packing, parts)
    gpu = config.train.device != "cpu"
    lines, packs = steps_of(config, gpus, tokenizer)
    lines[:0] = [padded] if padded else []
    size_known = gpu_memory * GIB if gpu and gpu_memory else 0
    traced = one_pack(config, model_config, gpu, gpus)
    choice = choose(config, model_config, gpus, size_known, packs, traced)
    config = with_choice(config, choice)
    train, masters = config.train, config.model.param_dtype
    count = -(-packs // (gpus * packs_at_once(train)))
    lines += [f"micro-batches: up to {count} per rank and step", *choice.lines]
    memory = traced.under(train, gpus, count)
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
        f"model: {model_config.model_type}, {describe(traced.parameters, traced.active)}, "
        f"{traced.trained / 1e6:,.2f} M trained",
        *lines,
        f"memory per {'GPU' if gpu else 'rank'}, {gpus} in all, GiB:",
    ]
    lines += [f"  {name:30}{size / GIB:10.3f}   {kind}" for name, size, kind in table if size]
    when = max(memory.stages, key=lambda name: memory.stages[name])
    lines.append(f"  {'peak':30}{memory.peak / GIB:10.3f}   {when}; these are not all held at once")
    if gpu_memory is None:
        return [*lines, "whether it fits: give --gpu NAME, or --gpu-memory GiB"], True
    limit = USABLE * gpu_memory * GIB
    size, fits = f"{gpu_memory:g} GiB, of which {USABLE:.0%} for tensors", memory.peak <= limit
    lines.append(f"fits: {size}" if fits else f"does not fit {size}. Each of these alone:")
    if not fits:
        for name, peak in advice(config, model_config, traced, gpu, gpus, count, cluster):
            lines.append(f"  {name}: {peak / GIB:.2f} GiB{', fits' if peak <= limit else ''}")
    if cluster is not None and gpu:
        lines += in_time(config, model_config, traced, cluster, packs, limit)
    return lines, fits


def in_time(
    config: Config, model_config: Any, traced: Traced, cluster: Cluster, packs: int, limit: float
) -> list[str]:
    """Communication, time, and what would make it less within `limit` bytes."""
    train, length = config.train, config.data.max_length
    now = paced(traced, train, cluster, packs, length)
    step, sharded = now.step, f"over {now.memory.ranks} ranks"
    lines = [
        "communication per step and GPU: GB in buffers, received within and between nodes, s:",
        *(
            f"  {name:30}{part.buffers / GB:10.2f}{part.link / GB:10.2f}{part.network / GB:10.2f}"
            f"{part.seconds:10.3f}   formula; {what}"
            for name, part, what in (
                ("weights gathered", step.gathered, f"compute dtype, {sharded}"),
                ("gradients reduced, scattered", step.reduced, f"fp32, {sharded}"),
                (
                    "shards' sums all-reduced",
                    step.all_reduced,
                    f"fp32, over {train.replicas} replicas",
                ),
                (
                    "tokens exchanged for heads",
                    step.exchanged,
                    f"compute dtype, among {train.context_parallel} ranks; not hidden",
                ),
            )
            if part.buffers
        ),
        f"seconds per step of {-(-packs // train.context_parallel):,} full packs, expected:",
        *(
            f"  {name:30}{seconds:10.3f}   {what}"
            for name, seconds, what in (
                ("products, attention", step.needed, "formula / assumed speed"),
                ("recomputed", step.recomputed, "formula / assumed speed; blocks once more"),
                ("copies", step.copies, "formula / assumed speed; of weights and gradients"),
                ("communication, not hidden", step.exposed, f"{step.hidden:.3f} more beside these"),
                ("optimizer", step.optimizer, "formula / assumed speed; AdamW"),
                ("step", step.seconds, f"limited by {step.limit}"),
            )
            if seconds
        ),
        f"tokens per second: {now.tokens:,.0f}, {now.tokens / cluster.gpus:,.0f} per GPU; MFU "
        f"{traced.operations.needed * now.tokens / cluster.gpus / cluster.gpu.flops:.0%}",
        *(_range(traced, train, cluster, packs, length) if cluster.mfu is None else []),
        f"assumed: {cluster.assumed}. None of it has been measured on a GPU yet",
    ]
    if traced.active != traced.parameters:
        lines.append("not counted: products of experts in groups are slower than those of matrices")
    if config.model.fp8 != "none":
        lines.append("not counted: model.fp8; products are taken to be bf16's, and MFU is of them")
    if changes := faster(config, model_config, traced, cluster, packs, limit):
        lines.append("faster, each of these alone:")
    else:
        lines.append("faster: no setting that fits gives 2 % or more")
    for change, other, tokens, memory in changes:
        gain = tokens / now.tokens - 1
        lines.append(
            f"  {change}: {tokens:,.0f} tokens per second (+{gain:.0%}), "
            f"step {other.seconds:.3f} s, {memory.peak / GIB:.1f} GiB"
        )
    return lines


def _range(
    traced: Traced, train: TrainConfig, cluster: Cluster, packs: int, length: int
) -> list[str]:
    """That the time is a guess between two, by the shares of the peak that have been published."""
    low, high = cluster.speeds
    slow, fast = (
        paced(traced, train, dataclasses.replace(cluster, mfu=mfu), packs, length).step.seconds
        for mfu in (low, high)
    )
    between = f"{fast:.3f} s at {high:.0%} of the peak to {slow:.3f} s at {low:.0%}"
    return [f"a guess: {between}, not measured here ({cluster.gpu.found}); --mfu sets one"]


def cluster_of(options: argparse.Namespace, device: str | None) -> Cluster | None:
    """None where the kind of GPU is not known. `device`: name of this machine's. Raises
    ConfigError."""
    for name in ("gpus", "gpu_memory", "gpus_per_node", "network", "mfu"):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: give a number above 0")
    gpu = named_gpu(options.gpu) if options.gpu else gpu_of(device or "")
    if gpu is None:
        for name in ("gpus_per_node", "network", "mfu"):
            if (value := getattr(options, name)) is not None:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value} is for the time of a step, which is not "
                    "estimated for a GPU that is not known: add --gpu NAME, or leave it out"
                )
        return None
    if options.mfu is not None and options.mfu > 1:
        raise ConfigError(f"--mfu {options.mfu}: a share of the peak, such as 0.4")
    network, node = options.network or NETWORK, options.gpus_per_node or 8
    return Cluster(options.gpus, gpu, node, network * GB, options.mfu)


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
    """(lines about data and steps, packs of the largest step, or parts of them, one for each rank
    of train.context_parallel). Tokenises the data if it is not in
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
        sampler = BatchSampler(data, config, max(1, gpus // train.context_parallel), shard)
        steps = train.max_steps or sampler.steps(train.epochs)
    except UserError as error:
        guess = train.global_batch_size
        return [
            f"steps: unknown, the data cannot be opened: {error}",
            f"assumed: {guess} packs per step (no packing)",
        ], guess * train.context_parallel
    sample = range(min(steps, 50, sampler.end))
    tokens = sum(sampler.tokens(step) for step in sample) / len(sample)
    return [
        f"steps: {steps:,} of {train.global_batch_size:,} examples, {sampler.extent(steps)}",
        f"tokens: about {tokens:,.0f} per step and {tokens * steps:,.0f} in all",
    ], sampler.most_packs(steps) * train.context_parallel


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    gpu_memory, here = options.gpu_memory, torch.cuda.is_available()
    try:
        device = torch.cuda.get_device_properties(0) if here else None
        cluster = cluster_of(options, device.name if device else None)
        if gpu_memory is None and options.gpu:
            gpu_memory = named_gpu(options.gpu).memory
        elif gpu_memory is None and device:
            gpu_memory = device.total_memory / GIB
        config = load_config(options.settings)
        lines, fits = report(config, options.gpus, gpu_memory, cluster)
    except UserError as error:
        return print_error("adaptsft.plan", error)
    print("\n".join(lines))
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
