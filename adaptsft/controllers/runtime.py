"""What the training loop calls: the configured controller, its memory, and the control of the next step."""

import math

import torch
from torch import Tensor

from adaptsft.config.schema import ControllerConfig, TrainConfig
from adaptsft.controllers import auto, feedback  # noqa: F401 (they fill the registry)
from adaptsft.controllers.base import REGISTRY, Controller, Progress, State
from adaptsft.controllers.schedules import Schedule
from adaptsft.objectives.state import ObjectiveState
from adaptsft.statistics.step import (
    BINS,
    LOG_NLL_RANGE,
    SourceStatistics,
    StepStatistics,
    histogram_quantile,
)
from adaptsft.training.optim import learning_rate

MASS_DECAY = 0.9  # of the running mean of s


def build(config: ControllerConfig) -> Controller | None:
    """The configured controller with its parameters; None for controller.name=fixed. The names were checked by `validate`."""
    if config.name == "fixed":
        return None
    cls = REGISTRY[config.name]
    if not issubclass(cls, Schedule):
        return cls(**config.params)
    points = tuple((float(x), float(y)) for x, y in config.points)
    return cls(config.parameter, config.start, config.end, config.begin, config.finish, points)


class ControllerRuntime:
    """`memory` is the controller's state; with the control it is all that a checkpoint holds of it."""

    def __init__(
        self,
        config: ControllerConfig,
        train: TrainConfig,
        steps: int,
        control: ObjectiveState,
        base: SourceStatistics | None = None,
    ):
        self.config, self.train, self.steps = config, train, steps
        self.controller = build(config)
        self.memory: State = {}
        rows, device = len(control.alpha) + 1, control.alpha.device
        if self.controller is not None:
            self.memory = self.controller.start(rows, device, base)
            self.memory["seen_tokens"] = torch.zeros(rows, dtype=torch.float64, device=device)
        self.first = self._moved(control)

    def tensors(self, control: ObjectiveState) -> dict[str, Tensor]:
        """What a checkpoint saves and loads in place."""
        return control._asdict() | {
            f"controller.{name}": value for name, value in self.memory.items()
        }

    def advance(
        self, control: ObjectiveState, statistics: StepStatistics, skip: Tensor, done: int
    ) -> ObjectiveState:
        """The control of step `done` (0-based), from the all-reduced statistics of the step before it; if that was skipped (0-d, 1.),
        it stays as it was: statistics that are not finite must not steer."""
        new, skipped = with_step_statistics(control, statistics), skip > 0
        new = ObjectiveState(
            *(
                torch.where(skipped, before, after)
                for after, before in zip(new, control, strict=True)
            )
        )
        if self.controller is None:
            return new
        seen = statistics.signals()
        moment = Progress(
            done,
            self.steps,
            learning_rate(done, self.steps, self.train) / (self.train.lr or 1.0),
            self._warming(done),
        )
        state = self.controller.update(
            {k: v for k, v in self.memory.items() if k != "seen_tokens"}, seen, moment
        )
        state["seen_tokens"] = self.memory["seen_tokens"] + seen.tokens
        steers = (seen.tokens > 0) & ~skipped | isinstance(
            self.controller, Schedule
        )  # a schedule needs no tokens to move
        for name, value in self.memory.items():  # in place: checkpoints load into these tensors
            value.copy_(torch.where(steers.view(-1, *[1] * (value.ndim - 1)), state[name], value))
        return self._moved(new)

    def _warming(self, step: int) -> bool:
        return step < math.ceil(self.train.warmup_ratio * self.steps)

    def _moved(self, control: ObjectiveState) -> ObjectiveState:
        """The control with what the controller moves, each source drawn towards the common value as long as it has few tokens:
        (N own + kappa common) / (N + kappa), N its tokens so far, kappa = controller.shrinkage."""
        if self.controller is None:
            return control
        moved = {}
        for name in (
            self.controller.moves
            if not isinstance(self.controller, Schedule)
            else (self.config.parameter,)
        ):
            own, common = self.memory[name][:-1], self.memory[name][-1:]
            tokens, kappa = self.memory["seen_tokens"][:-1], self.config.shrinkage
            share = tokens / (tokens + kappa) if kappa > 0 else torch.ones_like(tokens)
            moved[name] = (share * own + (1 - share) * common).float()
        return control._replace(**moved)


def with_step_statistics(control: ObjectiveState, statistics: StepStatistics) -> ObjectiveState:
    """The control with `mean_p`, `sequence_nll` and the running `mass` after this step; sources without a token in it
    keep their last value."""
    tokens = statistics.column("tokens")
    mean_p = statistics.column("p") / tokens
    sequence_nll = histogram_quantile(statistics.table[:, -BINS:], 0.5, LOG_NLL_RANGE).exp()
    seen = tokens > 0
    mass = control.mass + (1 - MASS_DECAY) * (
        (statistics.column("weight").sum() / tokens.sum()).float() - control.mass
    )
    return control._replace(
        mean_p=torch.where(seen, mean_p.float(), control.mean_p),
        sequence_nll=torch.where(seen, sequence_nll.float(), control.sequence_nll),
        mass=mass,
    )
