"""An objective and a controller of one's own. Both are named where ours would be:

    python -m adaptsft.train configs/sft.yaml model.path=… data.path=… run_dir=runs/own \
        objective.name=examples/own.py:sure_of_it controller.name=examples/own.py:RunningP
"""

from typing import ClassVar

import torch

from adaptsft.controllers.base import Controller


def sure_of_it(logp, entropy, alpha, *, scale=1.0):
    """loss: -weight log p
    weight: p^(alpha exp(-H / scale))

    NLL where the model is undecided, f_alpha where it is sure. The loss returned is differentiated
    with respect to log p; the weight in it must not be, hence detach().
    """
    weight = torch.exp(alpha * torch.exp(-entropy / scale) * logp)
    return -weight.detach() * logp


class RunningP(Controller):
    """alpha = the running mean of p, per source."""

    bounds: ClassVar = {"decay": (0.0, 1.0)}
    decay: float = 0.9

    def update(self, state, statistics, progress):
        return {"alpha": self.decay * state["alpha"] + (1 - self.decay) * statistics.mean_p}
