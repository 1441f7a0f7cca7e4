"""What an objective asks for by the names of its parameters, and its weight."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from adaptsft.errors import require_known
from adaptsft.objectives.state import READABLE, ObjectiveState
from adaptsft_kernels import TokenStatistics

Result = tuple[Tensor, Tensor]  # loss [n], weight [n]
# token statistics that are there only for objectives that need them
ON_REQUEST = ("top_entropy", "mass", "reference")
ALL = ("tokens", "state")  # or everything at once
NAMES = (*TokenStatistics._fields, *READABLE)
ANYWHERE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def asked_for(start: str, function: Callable, names: Iterable[str] = NAMES) -> tuple[str, ...]:
    """The names of a function's positional parameters, ALL or out of `names`. Raises ValueError,
    which begins with `start`, where they are others, or have defaults: what `objective.params` may
    set are keyword-only ones."""
    arguments = list(inspect.signature(function).parameters.values())
    asked = tuple(argument.name for argument in arguments if argument.kind in ANYWHERE)
    for argument in arguments:
        name, given = argument.name, argument.default
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            raise ValueError(f"{start} takes {argument}: name what it reads")
        if argument.kind is argument.KEYWORD_ONLY:
            continue
        if given is not argument.empty:
            raise ValueError(
                f"{start}: its parameter {argument} must stand behind a star, *, {argument}"
            )
        if asked != ALL:
            hint = " (p is logp.exp())" if name == "p" else ""
            what = f"{start} takes {name}, which is no statistic of a token{hint}"
            require_known(what, name, names, ValueError)
    if not asked:
        raise ValueError(f"{start} takes nothing to read: give it a parameter logp")
    return asked


def by_name(function: Callable, names: tuple[str, ...]) -> Callable[..., Any]:
    """The function of (tokens, state), from that of what it asks for."""

    @functools.wraps(function)  # keeps the names of the parameters, and the docstring
    def called(tokens: TokenStatistics, state: ObjectiveState | None, **parameters: float) -> Any:
        if names == ALL:
            return function(tokens, state, **parameters)
        fields = TokenStatistics._fields
        values = [getattr(tokens if name in fields else state, name) for name in names]
        return function(*values, **parameters)

    return called


def with_weight(function: Callable, names: tuple[str, ...]) -> Callable[..., Result]:
    """(tokens, state) -> (loss, weight), from a function of what it asks for that returns both, or
    the loss alone: then weight = -d loss / d log p, by autograd. 1 - p follows log p, and keeps its
    digits; all other statistics, and the state, are constants."""
    inner, alone = by_name(function, names), False  # whether it returns the loss alone

    @functools.wraps(function)
    def objective(tokens: TokenStatistics, state: ObjectiveState, **parameters: float) -> Result:
        nonlocal alone
        if not alone:  # the first call tells, so that a weight by hand costs no graph
            result = inner(tokens, state, **parameters)
            if isinstance(result, tuple):
                return result
            alone = True
        differentiable = tokens.logp.requires_grad  # never in training
        with torch.enable_grad():
            logp = tokens.logp if differentiable else tokens.logp.detach().requires_grad_()
            p = logp.exp()  # p - p.detach() is zero, and its slope is p
            rest = tokens.one_minus_p.detach() - (p - p.detach())
            loss = inner(tokens._replace(logp=logp, one_minus_p=rest), state, **parameters)
            if not isinstance(loss, Tensor):
                kind = type(loss).__name__
                raise TypeError(f"returned {kind}, not the loss [n], or (loss [n], weight [n])")
            if not loss.requires_grad:
                raise ValueError("returned a loss that depends on neither logp nor one_minus_p")
            (slope,) = torch.autograd.grad(loss.sum(), logp, retain_graph=differentiable)
        return (loss if differentiable else loss.detach()), -slope

    return objective
