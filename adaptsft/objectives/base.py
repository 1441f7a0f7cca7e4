"""Objectives: functions of the probability p that the model gives the target token.

An objective returns, per token, its loss and its weight -p f'(p), which is the factor of the logit
gradient, dz_i = weight (p_i - delta_iy); the gradient at the target's logit has the size
W = weight (1 - p). A new objective is one function with `@register("name")` above it. It takes

- log p [n] alone and returns the loss [n]; the weight is then computed by autograd; or
- `TokenStatistics` (log p, 1 - p, entropy, sum p_i^2; each [n]) and `ObjectiveState` (its fields
  gathered per token, [n]) and returns the loss and the weight, written by hand: for what depends on
  more than log p, or where autograd loses accuracy near p = 0 or 1.

Its keyword-only arguments are what `objective.params` may set. A weighted likelihood has the loss
-weight log p with the weight under stop-gradient. The lines `loss` and `weight` of a docstring are
printed by `python -m adaptsft.objectives`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from adaptsft.errors import require_known
from adaptsft.objectives.state import ObjectiveState
from adaptsft_kernels import TokenOutputs, TokenStatistics

Result = tuple[Tensor, Tensor]  # loss [n], weight [n]
Function = TypeVar("Function", bound=Callable)
# token statistics that are there only for objectives that need them
ON_REQUEST = ("top_entropy", "mass", "reference")


@dataclasses.dataclass(frozen=True)
class Objective:
    """What `linear_objective` calls: objective(tokens, state) -> (loss [n], weight [n]).

    The state may be None for an objective that reads none of it, such as the NLL of an evaluation.
    """

    name: str
    function: Callable[..., Result]
    # (tokens, state) -> bool [n]: the tokens kept, where masking is part of the objective
    mask: Callable[..., Tensor] | None = None
    needs: frozenset[str] = frozenset()  # of ON_REQUEST
    uses: frozenset[str] = frozenset()  # fields of ObjectiveState that it reads
    whole_batch: bool = False  # it must see all tokens of a micro-batch at once
    bounds: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    # ids of the tokens that are left to NLL; state.exempt marks them
    exempt: Tensor | None = None

    def __call__(self, tokens: TokenStatistics, state: ObjectiveState | None) -> Result:
        loss, weight = self.function(tokens, state)
        if self.exempt is None:
            return loss, weight
        assert state is not None
        exempt = state.exempt > 0
        return torch.where(exempt, -tokens.logp, loss), torch.where(exempt, 1.0, weight)

    def keep(
        self,
        tokens: TokenStatistics | TokenOutputs,
        state: ObjectiveState | None,
        reference: Any = None,
    ) -> Tensor:
        """Which tokens count for `objective.normalizer=kept`: bool [n], all True for an objective
        without a mask. `reference` is that of the tokens, for an objective that needs it."""
        if self.mask is None:
            return torch.ones_like(tokens.logp, dtype=torch.bool)
        kept = self.mask(TokenStatistics(*tokens[:6], reference=reference), state)
        if self.exempt is None:
            return kept
        assert state is not None
        return kept | (state.exempt > 0)

    @property
    def sparse(self) -> bool:
        """Whether many weights are zero, so that asking a GPU how many tokens are left pays."""
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
) -> Callable[[Function], Function]:
    """Make a function available as `objective.name=<name>`. It is
    (logp, *, parameter=default...) -> loss, or
    (tokens, state, *, parameter=default...) -> (loss, weight).

    `uses` are the fields of ObjectiveState that it reads, `needs` the token statistics of
    ON_REQUEST, `bounds` the ranges of its parameters. `mask` takes the same arguments and returns
    bool [n]. An objective with a parameter `batch` sees the whole micro-batch when that is 1.
    Raises ValueError if the name is taken, and for a misspelt field, statistic or parameter.
    """

    def add(function: Function) -> Function:
        if name in REGISTRY or name == "threshold":
            raise ValueError(f"an objective called {name} is registered already")
        of_logp = _positional(function) == 1
        objective = Objective(
            name,
            weight_by_autograd(function) if of_logp else function,
            mask,
            frozenset(needs),
            frozenset(uses),
            whole_batch,
            bounds or {},
        )
        start = f"objective {name}"
        if of_logp and objective.uses | objective.needs:
            raise ValueError(f"{start} takes log p alone, and can read nothing else")
        for field in objective.uses:
            require_known(f"{start}: uses={field}", field, ObjectiveState._fields, ValueError)
        for statistic in objective.needs:
            require_known(f"{start}: needs={statistic}", statistic, ON_REQUEST, ValueError)
        for parameter in objective.bounds:
            what = f"{start}: bounds of {parameter}"
            require_known(what, parameter, objective.parameters, ValueError)
        REGISTRY[name] = objective
        return function

    return add


def of_function(name: str, function: Callable[..., Any]) -> Objective:
    """The objective that a function is which nobody has registered: (logp) -> loss, or (tokens,
    state) -> (loss, weight)."""
    of_logp = _positional(function) == 1
    return Objective(name, weight_by_autograd(function) if of_logp else function)


def weight_by_autograd(function: Callable[..., Tensor]) -> Callable[..., Result]:
    """(tokens, state) -> (loss, weight) of a function of log p: weight = -d loss / d log p."""

    @functools.wraps(function)  # keeps the names of the parameters, and the docstring
    def objective(tokens: TokenStatistics, state: ObjectiveState, **parameters: float) -> Result:
        differentiable = tokens.logp.requires_grad  # never in training
        with torch.enable_grad():
            logp = tokens.logp if differentiable else tokens.logp.detach().requires_grad_()
            loss = function(logp, **parameters)
            (slope,) = torch.autograd.grad(loss.sum(), logp, retain_graph=differentiable)
        return loss if differentiable else loss.detach(), -slope

    return objective


def _positional(function: Callable) -> int:
    arguments = inspect.signature(function).parameters.values()
    return sum(argument.kind is argument.POSITIONAL_OR_KEYWORD for argument in arguments)
