"""Objectives: functions of the probability p that the model gives the target token.

An objective returns, per token, its loss and s = -p f'(p), the weight of the logit gradient dz_i = s (p_i - delta_iy); the size
of the gradient on the target's logit is W = s (1 - p). A new objective is one function, and `@register("name")` above it: the
function receives Rows (l = log p, 1 - p, entropy, sum p_i^2; each [n]) and Control (its fields gathered per row, [n]), and its
keyword-only arguments are what `objective.params` may set. The weights named w are under stop-gradient: loss -w log p, s = w.

The lines `loss` and `s` of each docstring are printed by `describe`. s is computed from log p and 1 - p so that it keeps its
relative accuracy at both ends; tests/objectives/test_objectives.py holds every objective here against 50-digit arithmetic.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adaptsft_kernels import TokenOutputs, TokenStatistics

Result = tuple[Tensor, Tensor]  # loss [n], s [n]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What `linear_objective` calls: objective(rows, control) -> (loss [n], s [n])."""

    name: str
    function: Callable[..., Result]
    mask: Callable[..., Tensor] | None = (
        None  # (rows, control) -> bool [n]: the tokens kept, where masking is part of the objective
    )
    needs: frozenset[str] = frozenset()  # row statistics that are computed only on request
    uses: frozenset[str] = frozenset()  # fields of Control that it reads
    whole_batch: bool = False  # it must see all rows of a micro-batch at once
    bounds: Mapping[str, tuple[float, float]] = dataclasses.field(
        default_factory=dict
    )  # allowed range of its parameters
    exempt: Tensor | None = (
        None  # ids of the tokens that are left to NLL; control.exempt marks them
    )

    def __call__(self, rows: TokenStatistics, control: Any) -> Result:
        loss, s = self.function(rows, control)
        if self.exempt is None:
            return loss, s
        return torch.where(control.exempt > 0, -rows.logp, loss), torch.where(
            control.exempt > 0, 1.0, s
        )

    def keep(self, rows: TokenStatistics | TokenOutputs, control: Any) -> Tensor:
        """Which tokens count for `objective.normalizer=kept`: bool [n], all True for an objective without a mask."""
        if self.mask is None:
            return torch.ones_like(rows.top1)
        kept = self.mask(rows, control)
        return kept if self.exempt is None else kept | (control.exempt > 0)

    @property
    def sparse(self) -> bool:
        """Whether many weights s are zero, so that a GPU had better ask how many rows are left."""
        return self.mask is not None

    @property
    def parameters(self) -> dict[str, float]:
        """Names and defaults of what `objective.params` may set."""
        arguments = inspect.signature(self.function).parameters.values()
        return {
            argument.name: argument.default
            for argument in arguments
            if argument.kind is argument.KEYWORD_ONLY
        }


REGISTRY: dict[str, Objective] = {}


def register(
    name: str,
    *,
    uses: Iterable[str] = (),
    needs: Iterable[str] = (),
    mask: Callable[..., Tensor] | None = None,
    whole_batch: bool = False,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Make a function (rows, control, *, parameter=default...) available as `objective.name=<name>`.

    `mask` takes the same arguments and returns bool [n]. An objective with a parameter `batch` sees the whole micro-batch when
    that is 1. Raises ValueError if the name is taken.
    """

    def add(function: Callable[..., Result]) -> Callable[..., Result]:
        if name in REGISTRY or name == "threshold":
            raise ValueError(f"an objective called {name} is registered already")
        REGISTRY[name] = Objective(
            name, function, mask, frozenset(needs), frozenset(uses), whole_batch, bounds or {}
        )
        return function

    return add
