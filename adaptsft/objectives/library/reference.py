"""Objectives that read the base model: p_0 is its probability of the target, from the file that
objective.base_tokens names (adaptsft.objectives.reference)."""

import math

import torch
from torch import Tensor

from adaptsft.objectives.base import Result, register
from adaptsft.objectives.library.weighted import of_sequences, weighted
from adaptsft.objectives.reference import Reference


@register("prift_prob")
def prift_prob(logp: Tensor, reference: Reference) -> Result:
    """loss: -weight log p
    weight: p_0
    W: p_0 (1-p)

    DFT with the base model's p, which training does not move: the weights cannot reinforce
    themselves. Source: arXiv:2606.09396 (PriFT-prob).
    """
    return weighted(logp, reference.logp.exp())


@register(
    "prift_mass",
    mask=lambda reference, *, cut: reference.mass >= cut,
    bounds={"cut": (0.0, 1.0)},
)
def prift_mass(logp: Tensor, reference: Reference, *, cut: float = 0.5) -> Result:
    """loss: -log p if u >= cut, else 0
    weight: 1 if u >= cut, else 0, u = sum of p_0 over the tokens at most as likely as the target
    W: 1-p if u >= cut, else 0

    Keeps what the base model would have said, the likeliest token always (there u = 1) and among
    many likely ones each of them. Source: arXiv:2606.09396 (PriFT-mass), formula and cut of its
    repository; it divides by all tokens (objective.normalizer=all).
    """
    return weighted(logp, (reference.mass >= cut).to(logp.dtype))


@register("psft", bounds={"high": (0.0, 100.0)})
def psft(logp: Tensor, reference: Reference, *, high: float = 0.28) -> Result:
    """loss: -min(r, 1 + high), r = p / p_0
    weight: r if r < 1 + high, else 0
    W: r (1-p) if r < 1 + high, else 0

    PPO's clipped ratio with the advantage 1 for every token, where its lower clip (.2) has no
    effect. The paper renews the old policy every few updates (8 in its scripts); here it is the
    base model, so that no token is pulled beyond 1 + high times its first p. Source:
    arXiv:2508.17784.
    """
    bound = math.log1p(high)
    log_ratio = logp - reference.logp
    ratio = log_ratio.clamp(max=bound).exp()
    return -ratio, torch.where(log_ratio < bound, ratio, 0.0)


@register(
    "iw_sft",
    whole_batch=True,
    bounds={"temperature": (0.0, 100.0), "clip": (1.0, 1e6)},
)
def iw_sft(
    logp: Tensor,
    sequence: Tensor,
    reference: Reference,
    *,
    temperature: float = 1.0,
    clip: float = 16.0,
) -> Result:
    """loss: -weight log p
    weight: min(exp(temperature mean_t log(p_t / p_0t)), clip), mean over the sequence's targets
    W: weight (1-p)

    Importance weights of whole sequences: those that the model has come to prefer count more. The
    mean over tokens instead of their sum, and the clip, are those of the authors' code. Source:
    arXiv:2507.12856.
    """
    log_ratio = logp - reference.logp
    means, _ = of_sequences(sequence, log_ratio, "iw_sft")
    exponent = temperature * means[sequence]
    return weighted(logp, exponent.clamp(max=math.log(clip)).exp())
