"""What the tests of objectives share: statistics of tokens at given p, a state, and a registry of
ours alone."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import mpmath as mp
import torch
from torch import Tensor

from adaptsft.objectives import library
from adaptsft.objectives.base import REGISTRY, Objective
from adaptsft.objectives.reference import Reference
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import TokenStatistics

mp.mp.dps = 400  # 50 digits must be left of the derivative of 1 - p^10 at p = 1e-30
H, C, H20 = 1.3, 0.4, 1.1  # entropy, sum p_i^2 and top-20 entropy of every token
MEAN_P, TAU = 0.6, 0.8
# under the base model: p, entropy, sum p_i^2, p of the likeliest, top-20 entropy, and the mass of
# what is at most as likely as the target
P_0, H_0, C_0, TOP_0, H20_0, MASS_0 = 0.3, 1.7, 0.2, 0.35, 1.5, 0.65
P = [
    "1e-30",
    "3e-20",
    "1e-12",
    "1e-8",
    "2e-7",
    "1e-4",
    "0.0103",
    "0.0998",
    "0.1002",
    "0.2",
    "0.36",
    "0.49",
    "0.51",
    "0.63",
    "0.75",
    "0.92",
]
# log1mp is exact up to 1 - 1e-6, its clamp
P += [
    "0.9301",
    "0.95",
    "0.99",
    "0.9999",
    "0.99999",
    "0.9999985",
]
BEYOND_CLAMP = ["0.9999999", "0.99999999999", "0.999999999999"]


def tokens_of(logp: Tensor, one_minus_p: Tensor, sequence: Tensor | None = None) -> TokenStatistics:
    full = torch.full_like(logp, 1.0)
    return TokenStatistics(
        logp,
        one_minus_p,
        H * full,
        C * full,
        logp > -0.7,
        logp.clamp(min=-0.5),
        H20 * full,
        sequence,
        reference=Reference(
            math.log(P_0) * full,
            H_0 * full,
            C_0 * full,
            math.log(TOP_0) * full,
            H20_0 * full,
            MASS_0 * full,
        ),
    )


def tokens_at(points: list[str]) -> TokenStatistics:
    p = [mp.mpf(point) for point in points]
    logp, one_minus_p = (
        [float(value) for value in values] for values in (map(mp.log, p), (1 - x for x in p))
    )
    return tokens_of(
        torch.tensor(logp, dtype=torch.float64),
        torch.tensor(one_minus_p, dtype=torch.float64),
        torch.arange(len(p)),  # each token is a sequence
    )


def state_of(count: int, dtype: torch.dtype = torch.float64, **values: float) -> ObjectiveState:
    values = {
        "alpha": 0.0,
        "lower": 0.0,
        "upper": 1.0,
        "floor": 0.0,
        "mean_p": MEAN_P,
        "sequence_nll": TAU,
        "mass": 1.0,
        "exempt": 0.0,
    } | values
    return ObjectiveState(
        **{name: torch.full((count,), value, dtype=dtype) for name, value in values.items()}
    )


def shipped() -> dict[str, Objective]:
    """The registry without what other tests have added to it."""
    return {
        name: objective
        for name, objective in REGISTRY.items()
        if objective.function.__module__.startswith(f"{library.__name__}.")
    }


@contextmanager
def only_shipped() -> Iterator[None]:
    """The registry without what other tests register, and as it was afterwards."""
    everything, ours = REGISTRY.copy(), shipped()
    REGISTRY.clear()
    REGISTRY.update(ours)
    yield
    REGISTRY.clear()
    REGISTRY.update(everything)
