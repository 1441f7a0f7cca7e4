"""What train.micro_batch_size=auto and train.reshard=auto become: what fits the GPU.

A function of the configuration, the shape of the model, the data, the number of ranks and the size
of the GPU, of all of it, not of what is free: ranks agree, and a resumed run decides as before.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from adaptsft.analysis.advice import advice
from adaptsft.analysis.memory import Memory
from adaptsft.analysis.trace import Traced, trace
from adaptsft.config.schema import Config, packs_at_once
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import print0, raise_on_all_ranks, rank, world_size
from adaptsft.errors import ConfigError, UserError

GIB = 2**30
USABLE = 0.9  # share of a GPU's memory that tensors may take: the rest is for what is not counted
# and what auto takes more of than it must: the gain is a few percent, and the estimate is one
COMFORTABLE = 0.8
# Larger micro-batches gain nothing. What one costs whatever its size is passes over the weights
# (gathered or cast twice, gradients added up): some 22 bytes of traffic per parameter, beside 6
# operations per parameter and token. At 32k tokens, 400 TFLOP/s and 3 TB/s that is 1.5 % of the
# time, of which twice the tokens would save half; matrix products are at their best long before.
ENOUGH_TOKENS = 32_768


class Choice(NamedTuple):
    micro_batch_size: int
    reshard: str
    lines: list[str]  # on each that was auto, with the reason
    fits: bool = True  # False where micro_batch_size was auto, and not one pack fits


def resolve_auto(
    config: Config, model_config: Any, data: TrainingData, device: torch.device
) -> None:
    """Replace auto in the configuration by what fits the smallest GPU of all ranks, and print it.
    All ranks call it together. Raises ConfigError on all of them where not one pack fits."""
    train = config.train
    if "auto" not in (train.micro_batch_size, train.reshard):
        return
    sizes = [0] * world_size()
    dist.all_gather_object(sizes, memory_of(device))
    # parts of packs: one for each rank of train.context_parallel
    packs = data.sampler.most_packs(data.steps) * train.context_parallel

    def on_rank_0() -> Choice | None:  # tracing takes some seconds of a core
        if rank() != 0:
            return None
        choice = choose(config, model_config, world_size(), min(sizes), packs)
        if not choice.fits:
            count = -(-packs // world_size())
            one = with_choice(config, choice)
            traced = one_pack(config, model_config, True, world_size())
            peaks = advice(one, model_config, traced, True, world_size(), count)
            changes = "; ".join(f"{name}: {peak / GIB:.1f} GiB" for name, peak in peaks)
            raise ConfigError(
                f"{choice.lines[0]}. Each of these alone leads to: {changes}. To try all the same, "
                "set train.micro_batch_size=1"
            )
        return choice

    choices: list[Choice | None] = [None] * world_size()
    dist.all_gather_object(choices, raise_on_all_ranks(on_rank_0))
    chosen = choices[0]
    assert chosen is not None
    for line in chosen.lines:
        print0(line)
    train.micro_batch_size, train.reshard = chosen.micro_batch_size, chosen.reshard


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU, in use or not; 0 for a CPU."""
    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_properties(device).total_memory if on_gpu else 0


def with_choice(config: Config, choice: Choice) -> Config:
    values = {"micro_batch_size": choice.micro_batch_size, "reshard": choice.reshard}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))


def choose(
    config: Config,
    model_config: Any,
    gpus: int,
    gpu_memory: float,
    packs: int,
    traced: Traced | None = None,
) -> Choice:
    """`gpu_memory`: bytes of one of so many GPUs, 0 where there is none, or its size is not known;
    `packs`: of the largest step, over all ranks; `traced`: `one_pack`, where that has been done."""
    train, lines = config.train, []
    size = None if train.micro_batch_size == "auto" else packs_at_once(train)
    # what is always right, if not the fastest
    plain = Choice(size or 1, "always" if train.reshard == "auto" else train.reshard, lines)
    if not gpu_memory:
        if size is None:
            lines.append("train.micro_batch_size=auto: 1, as there is no GPU whose size is known")
        return plain
    try:
        memory = memory_by_size(config, model_config, gpus, packs, traced)
    except UserError as error:  # if the model is at fault, training says so
        lines.append(
            f"train.micro_batch_size={plain.micro_batch_size}, train.reshard={plain.reshard}, not "
            f"what auto would be: memory cannot be estimated: {error}"
        )
        return plain
    limit, comfortable = USABLE * gpu_memory, COMFORTABLE * gpu_memory
    of = f"of {gpu_memory / GIB:.1f} GiB"
    if size is None:
        tokens = config.data.max_length // train.context_parallel  # of a pack, on a rank
        most = max(1, min(-(-packs // gpus), ENOUGH_TOKENS // tokens))
        powers = [2**power for power in range(most.bit_length())]
        peaks = {power: memory(power, plain.reshard == "always").peak for power in powers}
        # more of them may take less: a step of one micro-batch accumulates no gradients
        fitting = [power for power in powers if peaks[power] <= comfortable]
        fitting = fitting or [power for power in powers if peaks[power] <= limit][:1]
        if not fitting:
            lines.append(
                f"train.micro_batch_size=auto: not even 1 x {config.data.max_length:,} tokens "
                f"fits: by estimate {peaks[1] / GIB:.1f} GiB {of}, {USABLE:.0%} of them for tensors"
            )
            return plain._replace(fits=False)
        size = max(fitting)
        lines.append(
            f"train.micro_batch_size=auto: {size} x {config.data.max_length:,} tokens, by estimate "
            f"{peaks[size] / GIB:.1f} GiB {of}"
            + (f"; {2 * size}: {peaks[2 * size] / GIB:.1f} GiB" if size < powers[-1] else "")
            + f"; up to {COMFORTABLE:.0%} are taken for more than 1"
        )
    reshard = plain.reshard
    if train.reshard == "auto":
        peaks = {policy: memory(size, policy == "always").peak for policy in ("always", "never")}
        reshard = "never" if peaks["never"] <= comfortable else "always"
        lines.append(
            f"train.reshard=auto: {reshard}, by estimate never takes {peaks['never'] / GIB:.1f} "
            f"GiB {of}, and may {COMFORTABLE:.0%}; always: {peaks['always'] / GIB:.1f} GiB"
        )
    return Choice(size, reshard, lines)


def one_pack(config: Config, model_config: Any, gpu: bool, gpus: int) -> Traced:
    """Activations are proportional to the number of packs: only one is traced."""
    return trace(with_choice(config, Choice(1, "always", [])), model_config, gpu, gpus, 1)


def memory_by_size(
    config: Config, model_config: Any, gpus: int, packs: int, traced: Traced | None = None
) -> Callable[[int, bool], Memory]:
    """The memory of a rank by train.micro_batch_size, and by whether blocks are resharded."""
    found = traced or one_pack(config, model_config, True, gpus)

    def memory(size: int, reshards: bool) -> Memory:
        choice = Choice(size, "always" if reshards else "never", [])
        return found.under(with_choice(config, choice).train, gpus, -(-packs // (size * gpus)))

    return memory
