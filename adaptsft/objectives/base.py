"""Objectives: functions of the probability p that the model gives the target token.

An objective returns, per token, its loss and its weight -p f'(p), which is the factor of the logit
gradient, dz_i = weight (p_i - delta_iy); the gradient at the target's logit has the size
W = weight (1 - p). A new objective is one function, whose parameters are named after what it reads,
[n] each: fields of `TokenStatistics` (logp, one_minus_p, entropy, collision, …) and of
`ObjectiveState`, gathered per token (alpha, floor, mean_p, …). It returns

- the loss [n]; the weight is then computed by autograd, with respect to log p alone; or
- (loss, weight), written by hand: for weights under stop-gradient, or where autograd loses accuracy
  near p = 0 or 1.

Its keyword-only arguments are what `objective.params` may set. A weighted likelihood has the loss
-weight log p with the weight under stop-gradient. `@register("name")` above the function makes it
one of ours; a user names it as `objective.name=my_module:function`. The lines `loss` and `weight`
of a docstring are printed by `python -m adaptsft.objectives`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from adaptsft import __version__
from adaptsft.errors import require_known
from adaptsft.objectives.arguments import ALL, ON_REQUEST, Result, asked_for, by_name, with_weight
from adaptsft.objectives.state import READABLE, ObjectiveState
from adaptsft_kernels import TokenOutputs, TokenStatistics, version as kernels

if kernels.__version__ != __version__:
    raise ImportError(
        f"adaptsft {__version__} needs its own adaptsft_kernels, found {kernels.__version__} in "
        f"{kernels.__file__}: pip uninstall adaptsft-kernels, then --force-reinstall adaptsft"
    )

Function = TypeVar("Function", bound=Callable)
# token statistics that a mask may read: those of TokenOutputs
OF_MASKS = (*TokenStatistics._fields[:6], "reference", *READABLE)


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


def register(name: str, **options: Any) -> Callable[[Function], Function]:
    """Make a function available as `objective.name=<name>`. Options: those of `as_objective`, which
    also says what it raises; ValueError too if the name is taken. An objective with a parameter
    `batch` sees the whole micro-batch when that is 1."""

    def add(function: Function) -> Function:
        if name in REGISTRY or name == "threshold":
            raise ValueError(f"an objective called {name} is registered already")
        REGISTRY[name] = as_objective(name, f"objective {name}", function, **options)
        return function

    return add


def as_objective(
    name: str,
    start: str,
    function: Callable,
    *,
    uses: Iterable[str] = (),
    needs: Iterable[str] = (),
    mask: Callable[..., Tensor] | None = None,
    whole_batch: bool = False,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Objective:
    """The objective that a function is. `mask` reads what it names likewise, has the same
    keyword-only arguments, and returns bool [n]; `bounds` are the ranges of these.

    A function of (tokens, state) gets all that there is; `uses`, the fields of the state that it
    reads, and `needs`, its statistics of ON_REQUEST, must then be said. Raises ValueError, which
    begins with `start`, for what is misspelt, there or among the names of parameters.
    """
    names = asked_for(start, function)
    used, needed = set(uses), set(needs)
    if names != ALL and used | needed:
        raise ValueError(
            f"{start}: what it reads follows from the names of its parameters; leave "
            "uses and needs out"
        )
    for field in used:
        require_known(f"{start}: uses={field}", field, READABLE, ValueError)
    for statistic in needed:
        require_known(f"{start}: needs={statistic}", statistic, ON_REQUEST, ValueError)
    masks = () if mask is None else asked_for(f"{start}: its mask", mask, OF_MASKS)
    read = {*names, *masks}
    objective = Objective(
        name,
        with_weight(function, names),
        mask and by_name(mask, masks),
        needs=frozenset(needed | read.intersection(ON_REQUEST)),
        uses=frozenset(used | read.intersection(READABLE)),
        whole_batch=whole_batch,
        bounds=bounds or {},
    )
    for parameter, default in objective.parameters.items():
        if not isinstance(default, int | float):
            raise ValueError(f"{start}: its parameter {parameter} must have a number as default")
    for parameter in objective.bounds:
        what = f"{start}: bounds of {parameter}"
        require_known(what, parameter, objective.parameters, ValueError)
    return objective
