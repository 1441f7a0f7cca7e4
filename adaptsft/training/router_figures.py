"""What is logged of the routers of a mixture of experts, from the sums of `Routers`."""

import math
from typing import Any

import numpy as np

from adaptsft.model.router import Routers


def expert_loads(sums: np.ndarray, routers: Routers) -> np.ndarray:
    """How much each router sent to each of its experts in a step, [L, E]: 1 is an even share.
    `sums` fp64 [routers.size], over all ranks."""
    counts = sums[: -2 * routers.experts].reshape(routers.layers, routers.experts)
    return counts / np.maximum(counts.mean(1, keepdims=True), 1e-9)


def router_figures(sums: np.ndarray, routers: Routers, tokens: float) -> dict[str, Any]:
    """The load-balancing loss of a step of `tokens` tokens, before its weight, where the type has
    one; the largest and the smallest load of an expert, over all routers; and the entropy of the
    loads as a share of log E, in the mean over routers: 1 is even."""
    if not routers.counted:
        return {}
    loads, experts = expert_loads(sums, routers), routers.experts
    shares = loads / experts
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(1).mean()
    figures = {
        "expert_load_max": float(loads.max()),
        "expert_load_min": float(loads.min()),
        "expert_load_entropy": float(entropy / math.log(max(experts, 2))),
    }
    if routers.has_loss:
        chosen, probabilities = sums[-2 * experts :].reshape(2, experts)
        rows = routers.balanced * tokens
        figures["router_aux_loss"] = float(experts * (chosen @ probabilities) / rows**2)
    return figures
