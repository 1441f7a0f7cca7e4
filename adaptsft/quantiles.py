"""Quantile thresholds: the base model's own quantiles of p on the training data, measured before the first step."""

import time
from collections.abc import Iterable

import torch
import torch.distributed as dist

from adaptsft.config import ObjectiveConfig
from adaptsft.controllers import Control
from adaptsft.data import Batch
from adaptsft.distributed import print0
from adaptsft.model.attention import Documents
from adaptsft.model.build import NLL, ShardedModel, reshard
from adaptsft.stats import LOGIT_RANGE, bin_index, histogram_quantile, log_odds

BINS = 1 << 14  # steps of 0.003 in log-odds: p is resolved to 0.3 % of p (1 - p)


@torch.no_grad()
def with_quantiles(
    model: ShardedModel, config: ObjectiveConfig, control: Control, batches: Iterable[tuple[Batch, Documents]], tokens: int, chunk: int
) -> Control:
    """`control` with lower and upper set, per source, to the quantiles that the objective asks for.

    `batches` are this rank's share of the training data; `tokens`, their supervised tokens over all ranks, is for the progress line.
    """
    asked = {"lower": config.lower_quantile, "upper": config.upper_quantile}
    if all(q is None for q in asked.values()):
        return control
    counts = torch.zeros(control.alpha.shape[0] * BINS, dtype=torch.float64, device=control.alpha.device)
    started = said = time.perf_counter()
    model.eval()  # no dropout
    seen = 0
    for batch, documents in batches:
        _, rows = model.token_loss(batch, documents, NLL, None, 1.0, chunk)
        cell = batch.source * BINS + bin_index(log_odds(rows.logp, rows.one_minus_p), LOGIT_RANGE, BINS)
        counts.index_add_(0, cell, torch.ones_like(cell, dtype=torch.float64))
        seen += len(batch.labels) * dist.get_world_size()
        if time.perf_counter() - said > 5:
            said = time.perf_counter()
            share = min(seen / tokens, 1.0)
            print0(f"measuring quantiles of p under the base model: {share:.0%}, ETA {(said - started) * (1 - share) / share:.0f} s")
    model.train()
    reshard(model)
    dist.all_reduce(counts)
    for name, q in asked.items():
        if q is not None:
            threshold = histogram_quantile(counts.view(-1, BINS), q, LOGIT_RANGE).sigmoid().float()
            control = control._replace(**{name: threshold})
            print0(f"objective.{name}_quantile={q}: {name} = " + ", ".join(f"{value:.6g}" for value in threshold.tolist()))
    return control
