"""The base model on (a sample of) the training data: sums over tokens per source and per example,
and the figures of base_stats.json that follow from them."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from adaptsft.analysis.continuum import place_of
from adaptsft.analysis.intervals import interval, needed
from adaptsft.data.collator import Batch
from adaptsft.data.tokenized import TokenizedData
from adaptsft.distributed.ranks import print0
from adaptsft.distributed.watchdog import Watchdog
from adaptsft.model.fsdp import ShardedModel
from adaptsft.objectives.base import Objective, Result
from adaptsft.objectives.build import NLL
from adaptsft.objectives.reference import Reference
from adaptsft.objectives.state import ObjectiveState
from adaptsft.statistics.base_model import FineHistogram, encode
from adaptsft.statistics.step import StepStatistics
from adaptsft.training.quantiles import base_pass
from adaptsft_kernels import TokenOutputs, TokenStatistics

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
# of the reliability diagram and ECE: equal steps of the likeliest token's probability
# (Guo et al., arXiv:1706.04599)
BUCKETS = 15
# what is summed per example; conflict: another token than the target has p > .5
FIGURES = ("mean_p", "nll", "entropy", "below_0.2", "above_0.5", "above_0.55", "top1", "conflict")


class Measured(NamedTuple):
    """Sums over all ranks."""

    statistics: StepStatistics
    fine: FineHistogram
    # fp64 [sources, BUCKETS, 3]: tokens, sum of the likeliest token's probability, and how many of
    # the tokens have it as their target
    reliability: Tensor
    examples: Tensor  # fp64 [examples, 1 + FIGURES]: tokens, and the sum of each figure over them
    reference: Reference | None  # fp32 [tokens] each, on CPU, example after example


def draw_sample(data: TokenizedData, count: int | None, seed: int) -> np.ndarray:
    """int64, ascending: `count` examples of each source, drawn by seed and source; all of them
    where the source has fewer, or where count is None."""
    if count is None:
        return np.arange(len(data))
    parts = []
    for number in range(len(data.names)):
        members = np.flatnonzero(data.source == number)
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2, number)))
        parts.append(generator.permutation(members)[:count])
    return np.sort(np.concatenate(parts))


@torch.no_grad()
def measure(
    model: ShardedModel,
    batches: Iterable[Batch],
    sample: TokenizedData,
    per_token: bool,
    device: torch.device,
    watchdog: Watchdog,
) -> Measured:
    """Run this rank's `batches` of the sample through the model, and sum over ranks."""
    total = int(sample.target_tokens.sum())
    print0(f"measuring {total:,} tokens of {len(sample):,} examples under the base model")
    sources = len(sample.names)
    statistics, fine = StepStatistics(sources, device), FineHistogram(sources, device)
    reliability = torch.zeros(sources * BUCKETS, 3, dtype=torch.float64, device=device)
    examples = torch.zeros(len(sample), 1 + len(FIGURES), dtype=torch.float64, device=device)
    per_target = torch.zeros(len(Reference._fields), total if per_token else 0)
    begins = torch.from_numpy(sample.target_tokens.cumsum(dtype=np.int64) - sample.target_tokens)
    objective, seen = _listening() if per_token else (NLL, [])
    passes = base_pass(model, batches, total, "measuring p under the base model")
    for number, batch in enumerate(passes):
        watchdog.beat(number + 1)
        seen.clear()
        _, tokens, kept = model.token_loss(batch, objective, None, 1.0)
        if not len(batch.targets):
            continue
        statistics.add(tokens, kept, batch)
        fine.add(tokens, batch.source)
        assert batch.examples is not None, "set by collate"
        numbers = torch.from_numpy(batch.examples)
        examples[numbers.to(device)] = torch.segment_reduce(
            _figures(tokens), "sum", lengths=batch.sequence_lengths, unsafe=True
        )
        confidence = _confidence(tokens)
        bucket = (confidence * BUCKETS).long().clamp(max=BUCKETS - 1)
        counted = (torch.ones_like(confidence), confidence, tokens.top1.float())
        reliability.index_add_(
            0, batch.source * BUCKETS + bucket, torch.stack(counted, dim=1).double()
        )
        if per_token:
            lengths = batch.sequence_lengths.cpu()
            # from place in the batch to place in the data
            shift = begins[numbers] - (lengths.cumsum(0) - lengths)
            places = torch.arange(len(tokens.logp)) + shift.repeat_interleave(lengths)
            for column, name in zip(per_target, Reference._fields, strict=True):
                column[places] = torch.cat([getattr(part, name) for part in seen]).float().cpu()
    statistics.all_reduce()
    for tensor in (fine.counts, reliability, examples, per_target):
        dist.all_reduce(tensor)
    reliability = reliability.view(sources, BUCKETS, 3).cpu()
    reference = Reference(*per_target) if per_token else None
    return Measured(statistics, fine, reliability, examples.cpu(), reference)


def _listening() -> tuple[Objective, list[TokenStatistics]]:
    """NLL, and the list to which it adds the statistics of every chunk of tokens that it sees."""
    seen: list[TokenStatistics] = []

    def function(tokens: TokenStatistics, state: ObjectiveState | None) -> Result:
        seen.append(tokens)
        return NLL(tokens, state)

    return dataclasses.replace(
        NLL, function=function, needs=frozenset({"top_entropy", "mass"})
    ), seen


def _confidence(tokens: TokenOutputs) -> Tensor:
    return tokens.top_logp.exp().clamp(max=1.0)


def _figures(tokens: TokenOutputs) -> Tensor:
    """fp64 [n, 1 + FIGURES]: 1, and every figure of each token."""
    p = tokens.logp.exp()
    conflict = ~tokens.top1 & (_confidence(tokens) > 0.5)
    columns = (torch.ones_like(p), p, -tokens.logp, tokens.entropy)
    columns += (p < 0.2, p > 0.5, p > 0.55, tokens.top1, conflict)
    return torch.stack([column.double() for column in columns], dim=1)


def describe(
    measured: Measured, data: TokenizedData, sample: TokenizedData, number: int
) -> dict[str, Any]:
    """The figures of a source, as in base_stats.json; NAME_interval is the 95 % interval of a mean,
    or None where it is not known."""
    members = torch.from_numpy(sample.source == number)
    population = int((data.source == number).sum())
    tokens, *sums = measured.examples[members].numpy().T
    source: dict[str, Any] = {
        "examples": population,
        "measured": len(tokens),
        "tokens": int(tokens.sum()),
    }
    for name, figure in zip(FIGURES, sums, strict=True):
        source[name] = float(figure.sum() / tokens.sum())
        source[f"{name}_interval"] = interval(figure, tokens, population)
    source["sequence_nll"] = float(np.median(sums[FIGURES.index("nll")] / tokens))
    source["quantiles"] = {str(q): float(measured.fine.quantile(q)[number]) for q in QUANTILES}
    source["place"] = place_of(source["mean_p"])
    source["examples_for_precision"] = needed(sums[0], tokens, population)
    count, confidence, right = measured.reliability[number].numpy().T
    source["ece"] = float(np.abs(confidence - right).sum() / count.sum())
    source["overconfidence"] = float((confidence - right).sum() / count.sum())
    source["reliability"] = {
        "tokens": count.tolist(),
        "confidence": confidence.tolist(),
        "right": right.tolist(),
    }
    return source | encode(measured.statistics, measured.fine, number)
