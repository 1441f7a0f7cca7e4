"""Means, errors and comparisons of scores.

A score table is an fp64 array [items, samples]; NaN marks no score.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


class Estimate(NamedTuple):
    value: float
    se: float | None  # None where it cannot be known: a single item
    n: int  # items


def mean(scores: Scores) -> Estimate:
    """Mean over items of the mean over samples.

    Its error is that of the mean of item means: items are taken to be independent, samples of an
    item are not (clustered standard error, Miller 2024, arXiv:2411.00640, eq. 4 for equal cluster
    sizes).
    """
    by_item = scores.mean(1)
    by_item = by_item[~np.isnan(by_item)]
    error = float(by_item.std(ddof=1)) / math.sqrt(len(by_item)) if len(by_item) > 1 else None
    return Estimate(float(by_item.mean()), error, len(by_item))


def pass_at_k(scores: Scores, k: int) -> Estimate:
    """Chance that at least one of k samples is right, unbiased: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, arXiv:2107.03374, eq. 1.
    """
    n = scores.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples of each item, there are {n}")
    wrong = n - scores.sum(1).round().astype(int)
    return mean(np.array([[1.0 - math.comb(w, k) / math.comb(n, k)] for w in wrong]))


def per_token(means: Scores, tokens: Scores) -> Estimate:
    """Mean over all tokens, of means over the tokens of each answer [items, samples]; an answer
    without tokens has any mean.

    Its error is that of a ratio of two sums over items (Cochran 1977, Sampling Techniques,
    2.11): items are taken to be independent, the tokens of an item are not.
    """
    sums, counts = (np.where(tokens > 0, means, 0.0) * tokens).sum(1), tokens.sum(1)
    value, n = float(sums.sum() / counts.sum()), len(counts)
    residual = sums - value * counts
    error = math.sqrt(n / (n - 1) * float((residual**2).sum())) / counts.sum() if n > 1 else None
    return Estimate(value, None if error is None else float(error), n)


def by_sample(scores: Scores) -> list[float]:
    """Accuracy of the first samples of all items, of the second ones, …"""
    return [float(column) for column in np.nanmean(scores, 0)]


def paper_rounding(scores: Scores) -> float:
    """Mean over samples of the percentage rounded to one decimal, as a fraction.

    The paper's tables are computed so.
    """
    return float(np.mean([round(100 * column, 1) for column in by_sample(scores)])) / 100


class Difference(NamedTuple):
    value: float  # mean of b - mean of a
    low: float  # 95 % interval
    high: float
    p: float  # two-sided: how often a difference this far from 0 comes about when there is none
    n: int  # items that both have


def paired_bootstrap(a: Scores, b: Scores, seed: int = 0, resamples: int = 10_000) -> Difference:
    """Compare two runs on the same items by resampling item means in pairs.

    Efron & Tibshirani 1993, ch. 13 and 16.4. The interval is the percentile one; p is that of the
    differences shifted to have mean 0.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} items: a paired comparison needs the same ones")
    difference = b.mean(1) - a.mean(1)
    generator = np.random.default_rng(seed)
    observed = float(difference.mean())
    means = np.concatenate(
        [
            difference[generator.integers(0, len(difference), (count, len(difference)))].mean(1)
            for count in _portions(resamples, len(a))
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    p = (1 + int((np.abs(means - observed) >= abs(observed) - 1e-12).sum())) / (1 + resamples)
    return Difference(observed, float(low), float(high), p, len(a))


def _portions(resamples: int, items: int) -> list[int]:
    """Resamples at a time, so that the indices stay below some 10 million."""
    size = max(1, min(resamples, 10_000_000 // max(items, 1)))
    return [min(size, resamples - start) for start in range(0, resamples, size)]
