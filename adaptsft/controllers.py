"""Controllers: what moves the objective's parameters during training.

A controller maps (progress, statistics of earlier steps) to a Control, the parameters that the objective reads. Everything is a
device tensor indexed by source, so that no step waits for the host. A fixed objective is a controller that never moves.
A new schedule is one function of the share of the move that is done, and one line in SCHEDULES.
"""

import difflib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from adaptsft.config import ControllerConfig, ObjectiveConfig, require
from adaptsft.errors import ConfigError

if TYPE_CHECKING:
    from adaptsft.objectives import Objective


class Control(NamedTuple):
    """What an objective may depend on besides the token itself. fp32, shape [sources], on the device.

    `alpha`, `lower` and `upper` are moved by the controller. `mean_p` (mean probability of the targets, Eq. 5 of the paper) and
    `sequence_nll` (median of the sequence-mean NLL, nats per token) are the all-reduced statistics of the previous step.
    """

    alpha: Tensor
    lower: Tensor
    upper: Tensor
    mean_p: Tensor
    sequence_nll: Tensor


def initial_control(config: ObjectiveConfig, sources: int, device: torch.device) -> Control:
    """The control of step 1, before any statistic is known: mean_p 0.5 and 1 nat per token stand in for the two signals."""

    def full(value: float) -> Tensor:
        return torch.full((sources,), value, dtype=torch.float32, device=device)

    return Control(full(config.alpha), full(config.lower), full(config.upper), full(0.5), full(1.0))


# share of the move done, in [0, 1] -> share of the way from start to end
SCHEDULES: dict[str, Callable[[float], float]] = {
    "fixed": lambda share: 0.0,
    "linear": lambda share: share,
    "cosine": lambda share: 0.5 - 0.5 * math.cos(math.pi * share),
}


def apply(control: Control, config: ControllerConfig, step: int, steps: int) -> Control:
    """The control of the given step (0-based) of a run of `steps`: the scheduled parameter is set, everything else is kept."""
    if config.name == "fixed":
        return control
    progress = step / max(steps - 1, 1)
    span = config.finish - config.begin
    share = min(max((progress - config.begin) / span, 0.0), 1.0) if span > 0 else float(progress >= config.finish)
    value = config.start + (config.end - config.start) * SCHEDULES[config.name](share)
    return control._replace(**{config.parameter: torch.full_like(control.alpha, value)})


def per_token(control: Control, source: Tensor) -> Control:
    """The control of every token: source int64 [n] -> fields [n]."""
    return Control(*(field[source] for field in control))


def unless(skip: Tensor, new: Control, old: Control) -> Control:
    """`new`, or `old` where the step was skipped (0-d, 1.): statistics of a step that is not finite must not steer."""
    return Control(*(torch.where(skip > 0, before, after) for after, before in zip(new, old, strict=True)))


def validate(config: ControllerConfig, objective_config: ObjectiveConfig, objective: "Objective") -> None:
    """Refuse a controller that would move nothing, or move a parameter out of its range."""
    if config.name not in SCHEDULES:
        near = difflib.get_close_matches(config.name, SCHEDULES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"controller.name={config.name}: must be one of {', '.join(SCHEDULES)}{hint}")
    moves = config.name != "fixed"
    if moves and config.parameter not in objective.uses:
        fix = "objective.name=alpha" if config.parameter == "alpha" else "objective.name=threshold"
        fix += ", or controller.parameter=lower" if "lower" in objective.uses else ""
        raise ConfigError(
            f"controller.name={config.name} moves {config.parameter}, which objective.name={objective_config.name} does not read: use {fix}"
        )
    require(config.begin <= config.finish, f"controller.begin={config.begin} lies after controller.finish={config.finish}")
    for name in ("start", "end"):
        value = getattr(config, name)
        in_range = value >= 0 if config.parameter == "alpha" else 0 <= value <= 1
        require(
            not moves or in_range,
            f"controller.{name}={value}: {config.parameter} must be {'>= 0' if config.parameter == 'alpha' else 'in [0, 1]'}",
        )
    require(
        not (moves and getattr(objective_config, f"{config.parameter}_quantile", None) is not None),
        f"controller.parameter={config.parameter} and objective.{config.parameter}_quantile both set {config.parameter}: choose one",
    )
