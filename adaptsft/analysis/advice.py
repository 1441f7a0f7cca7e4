"""What would make a run that does not fit take less memory, and one that fits less time."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from adaptsft.analysis.memory import Memory
from adaptsft.analysis.scaling import Cluster, Step, all_to_all, estimate
from adaptsft.analysis.trace import Traced, trace
from adaptsft.config.schema import Config, TrainConfig, is_packed, packs_at_once
from adaptsft.errors import ConfigError
from adaptsft.model.context_parallel import check_heads
from adaptsft.model.supported import check_verified
from adaptsft.objectives.build import build_objective

# train.activation_checkpointing: the settings that keep less than this one
STRONGER = {"none": ("per_op", "full"), "per_op": ("full",), "full": ()}
WORTH_IT = 0.02  # of a step's time: what gains less is not advised


def advice(
    config: Config,
    model_config: Any,
    traced: Traced,
    gpu: bool,
    gpus: int,
    count: int,
    cluster: Cluster | None = None,
) -> Iterator[tuple[str, int]]:
    """Changes that would help, with the peak in bytes that each leads to on its own. `count`:
    micro-batches of a step; with `cluster` what sharing packs costs is said in tokens per
    second."""
    train = config.train
    changes: list[tuple[dict[str, Any], int]] = []  # settings of train, micro-batches of a step
    if train.reshard == "never":
        changes.append(({"reshard": "always"}, count))
    if (size := packs_at_once(train)) > 1:
        changes.append(({"micro_batch_size": 1}, count * size))
    for mode in STRONGER[train.activation_checkpointing]:
        changes.append(({"activation_checkpointing": mode}, count))
    if train.loss_chunk == 0 or train.loss_chunk > 1024:
        changes.append(({"loss_chunk": 1024}, count))
    if train.replicas > 1:
        changes.append(({"replicas": 1}, count))
    if count > 1 and not train.reduce_every_micro_batch:
        changes.append(({"reduce_every_micro_batch": True}, count))
    # with loss_reduction=micro_batch their number, and who shares one, are part of what is learned
    fixed = train.loss_reduction == "micro_batch"
    for settings, number in changes:
        if not fixed or number == count:
            changed = dataclasses.replace(train, **settings)
            found = _traced(config, model_config, traced, changed, gpu, gpus)
            yield _named(settings), found.under(changed, gpus, number).peak
    if fixed:
        return
    if count > 1:
        smaller = f"train.global_batch_size={train.global_batch_size // count}"
        peak = traced.under(train, gpus, 1).peak
        yield f"one micro-batch per step ({smaller} or {count} times the GPUs)", peak
    yield f"--gpus {2 * gpus}", traced.under(train, 2 * gpus, max(1, count // 2)).peak
    yield from _shared(config, model_config, traced, gpus, count, cluster)


def _shared(
    config: Config,
    model_config: Any,
    traced: Traced,
    gpus: int,
    count: int,
    cluster: Cluster | None,
) -> Iterator[tuple[str, int]]:
    """One pack among several GPUs, where it cannot be fewer of them, and the model allows it."""
    train, packing = config.train, is_packed(config.data)
    whole = traced.mixes or build_objective(config.objective).whole_batch
    if packs_at_once(train) > 1 or whole or config.model.attention == "eager":
        return
    for size in (2, 4, 8):
        if size <= train.context_parallel or gpus // train.replicas % size:
            continue
        try:
            check_heads(size, model_config)
            check_verified(config.model, model_config, packing, size)
        except ConfigError:
            continue
        changed = dataclasses.replace(train, context_parallel=size)
        more = count * size // train.context_parallel
        cost = f"{size} GPUs to a pack, {more} micro-batches per rank and step"
        if cluster is not None:
            new = paced(traced, changed, cluster, more * gpus, config.data.max_length)
            waits = new.step.exchanged.seconds / new.step.seconds
            cost += f", {new.tokens:,.0f} tokens per second, {waits:.0%} of it exchanges"
        peak = traced.under(changed, gpus, more).peak
        yield f"{_named({'context_parallel': size})} ({cost})", peak


class Paced(NamedTuple):
    """A step under some settings."""

    change: str  # what was changed
    step: Step
    tokens: float  # per second, on all GPUs
    memory: Memory


def paced(
    traced: Traced, train: TrainConfig, cluster: Cluster, packs: int, length: int, change: str = ""
) -> Paced:
    """A step of so many packs of `length` tokens, or parts of them, one for each rank of
    train.context_parallel."""
    size, shared = packs_at_once(train), train.context_parallel
    count = -(-packs // (cluster.gpus * size))
    memory = traced.under(train, cluster.gpus, count)
    recomputes, tokens = train.activation_checkpointing == "full", -(-size * length // shared)
    # forward and backward; per_op keeps products, not what is exchanged
    passes = 2 if train.activation_checkpointing == "none" else 3
    size_of_all = passes * memory.element * tokens * traced.exchanged(shared)
    exchanges = all_to_all(size_of_all, 2 * passes * traced.layers, shared, cluster)
    step = estimate(memory, traced.operations, tokens, count, recomputes, cluster, exchanges)
    return Paced(change, step, packs / shared * length / step.seconds, memory)


def faster(
    config: Config, model_config: Any, traced: Traced, cluster: Cluster, packs: int, limit: float
) -> list[Paced]:
    """Changes that fit `limit` bytes, each of which alone gives more tokens per second by WORTH_IT
    or more, the best first. `packs`: of a step, as in `paced`."""
    train, gpus, node = config.train, cluster.gpus, cluster.per_node
    size, length = packs_at_once(train), config.data.max_length
    changes: list[dict[str, Any]] = [{"reshard": "never"}]
    changes.append({"reduce_every_micro_batch": not train.reduce_every_micro_batch})
    shards = [ranks for ranks in (node, 2 * node, 4 * node, gpus) if gpus % ranks == 0]
    shards = [ranks for ranks in shards if ranks % train.context_parallel == 0]
    changes += [{"replicas": gpus // ranks} for ranks in shards]
    if train.activation_checkpointing == "full":  # per_op repeats no product either
        changes.append({"activation_checkpointing": "per_op"})
    if train.loss_reduction != "micro_batch":
        changes += [{"micro_batch_size": factor * size} for factor in (2, 4, 8)]
    fastest: dict[str, Paced] = {}  # of the changes of a key
    least = paced(traced, train, cluster, packs, length).tokens * (1 + WORTH_IT)
    for settings in changes:
        (key, value), *_ = settings.items()
        if getattr(train, key) == value:
            continue
        examples = packs
        if key == "micro_batch_size" and packs <= gpus * size:  # then a step needs more examples
            factor = value // size
            settings |= {"global_batch_size": factor * train.global_batch_size}
            examples *= factor
        changed = dataclasses.replace(train, **settings)
        found = _traced(config, model_config, traced, changed, True, gpus)
        new = paced(found, changed, cluster, examples, length, _named(settings))
        if new.memory.peak <= limit and new.tokens > max(
            least, fastest[key].tokens if key in fastest else 0
        ):
            fastest[key] = new
    return sorted(fastest.values(), key=lambda change: -change.tokens)


def _traced(
    config: Config,
    model_config: Any,
    traced: Traced,
    train: TrainConfig,
    gpu: bool,
    gpus: int,
) -> Traced:
    """Another trace, where the settings of train need one."""
    if train.activation_checkpointing == traced.train.activation_checkpointing:
        return traced
    return trace(dataclasses.replace(config, train=train), model_config, gpu, gpus, 1)


def _named(settings: dict[str, Any]) -> str:
    texts = [
        str(value).lower() if isinstance(value, bool) else value for value in settings.values()
    ]
    return " ".join(f"train.{key}={text}" for key, text in zip(settings, texts, strict=True))
