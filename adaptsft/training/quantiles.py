"""Quantile thresholds: the base model's own quantiles of p on the training data, measured before the first step or read from a file."""

import time
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.data.collator import Batch
from adaptsft.data.documents import Documents
from adaptsft.distributed.ranks import print0
from adaptsft.model.build import ShardedModel, reshard
from adaptsft.objectives.build import NLL
from adaptsft.objectives.state import ObjectiveState
from adaptsft.statistics.base_model import BaseStatistics, FineHistogram


def base_pass(
    model: ShardedModel, batches: Iterable[tuple[Batch, Documents]], tokens: int, what: str
) -> Iterator[tuple[Batch, Documents]]:
    """`batches`, this rank's share of the data, with the model in evaluation mode (no dropout), and a progress line "what: share, ETA".

    `tokens` are the target tokens over all ranks.
    """
    started = said = time.perf_counter()
    seen = 0
    model.eval()
    for batch, documents in batches:
        yield batch, documents
        seen += len(batch.targets) * dist.get_world_size()
        if time.perf_counter() - said > 5:
            said = time.perf_counter()
            share = min(max(seen, 1) / tokens, 1.0)
            print0(f"{what}: {share:.0%}, ETA {(said - started) * (1 - share) / share:.0f} s")
    model.train()
    reshard(model)


@torch.no_grad()
def with_quantiles(
    model: ShardedModel,
    config: ObjectiveConfig,
    control: ObjectiveState,
    batches: Iterable[tuple[Batch, Documents]],
    tokens: int,
    chunk: int,
    base: BaseStatistics | None = None,
) -> ObjectiveState:
    """`control` with lower and upper set, per source, to the quantiles that the objective asks for.

    They are those of `base`, if it is given; else all `batches`, this rank's share of the training data, are run through the model.
    `tokens`, their target tokens over all ranks, is for the progress line.
    """
    asked = {"lower": config.lower_quantile, "upper": config.upper_quantile}
    if all(q is None for q in asked.values()):
        return control
    if base is not None:
        histogram = base.fine
        print0(
            f"quantiles of p under the base model: from controller.base_stats (examples of each source: {base.sampled})"
        )
    else:
        histogram = FineHistogram(len(control.alpha), control.alpha.device)
        for batch, documents in base_pass(
            model, batches, tokens, "measuring quantiles of p under the base model"
        ):
            _, rows = model.token_loss(batch, documents, NLL, None, 1.0, chunk)
            histogram.add(rows, batch.source)
        dist.all_reduce(histogram.counts)
    for name, q in asked.items():
        if q is not None:
            threshold = histogram.quantile(q)
            control = control._replace(**{name: threshold})
            print0(
                f"objective.{name}_quantile={q}: {name} = "
                + ", ".join(f"{value:.6g}" for value in threshold.tolist())
            )
    return control
