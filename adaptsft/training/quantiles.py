"""Quantile thresholds: quantiles of p under the base model on the training data, measured before
the first step or read from a file."""

import time
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.data.collator import Batch
from adaptsft.data.loader import BatchLoader
from adaptsft.data.tokenized import TokenizedData
from adaptsft.distributed.ranks import print0
from adaptsft.model.fsdp import ShardedModel, evaluating
from adaptsft.objectives.build import NLL
from adaptsft.statistics.base_model import BaseStatistics, FineHistogram


def base_pass(
    model: ShardedModel, batches: Iterable[Batch], tokens: int, what: str
) -> Iterator[Batch]:
    """`batches`, this rank's share of the data, with the model in evaluation mode (no dropout), and
    a progress line "what: share, ETA".

    `tokens` are the target tokens over all ranks.
    """
    started = shown = time.perf_counter()
    seen, groups = 0, dist.get_world_size() // (model.context.size if model.context else 1)
    with evaluating(model):
        for batch in batches:
            yield batch
            seen += len(batch.targets) * groups
            if time.perf_counter() - shown > 5:
                shown = time.perf_counter()
                share = min(max(seen, 1) / tokens, 1.0)
                left = (shown - started) * (1 - share) / share
                print0(f"{what}: {share:.0%}, ETA {left:.0f} s")


@torch.no_grad()
def set_quantile_thresholds(
    model: ShardedModel,
    config: ObjectiveConfig,
    objective: AdaptiveObjective,
    data: TokenizedData,
    loader: BatchLoader,
    base: BaseStatistics | None,
) -> None:
    """Set lower and upper of the objective, per source, to the quantiles that it asks for, if any.

    They are those of `base` (controller.base_stats), if given; else all of `data` runs through the
    model.
    """
    asked = {"lower": config.lower_quantile, "upper": config.upper_quantile}
    asked = {name: q for name, q in asked.items() if name in objective.function.uses}
    if all(q is None for q in asked.values()):
        return
    if base is not None:
        histogram = base.fine
        print0(
            "quantiles of p under the base model: from controller.base_stats (examples of each "
            f"source: {base.sampled})"
        )
    else:
        histogram = FineHistogram(len(data.names), objective.state.alpha.device)
        what = "measuring quantiles of p under the base model"
        for batch in base_pass(model, loader.in_order(data), int(data.target_tokens.sum()), what):
            _, tokens, _ = model.token_loss(batch, NLL, None, 1.0)
            if model.counts:
                histogram.add(tokens, batch.source)
        dist.all_reduce(histogram.counts)
    for name, q in asked.items():
        if q is not None:
            threshold = histogram.quantile(q)
            objective.state = objective.state._replace(**{name: threshold})
            values = ", ".join(f"{value:.6g}" for value in threshold.tolist())
            print0(f"objective.{name}_quantile={q}: {name} = {values}")
