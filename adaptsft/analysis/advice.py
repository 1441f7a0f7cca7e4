"""What would make a run that does not fit take less memory."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from adaptsft.analysis.trace import trace
from adaptsft.config.schema import Config, packs_at_once

# train.activation_checkpointing: the settings that keep less than this one
STRONGER = {"none": ("per_op", "full"), "per_op": ("full",), "full": ()}


def advice(
    config: Config, model_config: Any, gpu: bool, gpus: int, count: int
) -> Iterator[tuple[str, int]]:
    """Changes that would help, with the peak in bytes that each leads to on its own. `count`:
    micro-batches of a step."""
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
            changed = dataclasses.replace(config, train=dataclasses.replace(train, **settings))
            (key, value), *_ = settings.items()
            text = str(value).lower() if isinstance(value, bool) else value
            peak = trace(changed, model_config, gpu, gpus, number).memory.peak
            yield f"train.{key}={text}", peak
    if fixed:
        return
    if count > 1:
        smaller = f"train.global_batch_size={train.global_batch_size // count}"
        peak = trace(config, model_config, gpu, gpus, 1).memory.peak
        yield f"one micro-batch per step ({smaller} or {count} times the GPUs)", peak
    peak = trace(config, model_config, gpu, 2 * gpus, max(1, count // 2)).memory.peak
    yield f"--gpus {2 * gpus}", peak
