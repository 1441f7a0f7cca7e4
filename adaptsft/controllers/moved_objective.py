"""An objective together with what moves it during training."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from adaptsft.config.schema import ControllerConfig
from adaptsft.controllers.base import Progress, State
from adaptsft.controllers.build import build_controller
from adaptsft.errors import CheckpointError
from adaptsft.objectives.base import Objective
from adaptsft.objectives.loss import Unknown
from adaptsft.objectives.state import MOVABLE, ObjectiveState
from adaptsft.statistics.step import SourceStatistics, StepStatistics

MEAN_WEIGHT_EMA = 0.9  # decay of the running mean of the token weights


class MovedObjective:
    """`function` is the objective and `state` what it reads, per source, in the step to come.

    `memory` is the controller's own state: tensors with an entry per source and a last one for all
    of them. With `state` it is all that a checkpoint holds of an objective.
    """

    def __init__(
        self,
        function: Objective,
        state: ObjectiveState,
        config: ControllerConfig,
        measured: SourceStatistics | None = None,
    ):
        """measured: what the base model makes of the data (controller.base_stats), where a
        controller may start from that."""
        self.function, self.config = function, config
        self.controller = build_controller(config)
        self.memory: State = {}
        size, device = len(state.alpha) + 1, state.alpha.device
        if self.controller is not None:
            self.memory = self.controller.initial_state(size, device, measured)
            if self.controller.scales_lr and "lr_scale" not in self.memory:
                raise ValueError(
                    f"controller {config.name}: scales_lr, without lr_scale in its state"
                )
            none = torch.zeros(size, dtype=torch.float64, device=device)
            self.memory["seen_tokens"] = none if measured is None else measured.tokens.clone()
        self.state = self._moved(state)

    @property
    def lr_scale(self) -> Tensor | None:
        """What the learning rate of the step to come is multiplied by, 0-d fp32 on the device; None
        where the controller leaves it alone."""
        if self.controller is None or not self.controller.scales_lr:
            return None
        return self.memory["lr_scale"][-1].float()

    def moved(self) -> dict[str, Tensor]:
        """What the objective reads of what can be moved, per source, and `lr_scale` (0-d): copies,
        as the step to come uses them."""
        found = {name: getattr(self.state, name) for name in MOVABLE if name in self.function.uses}
        if (scale := self.lr_scale) is not None:
            found["lr_scale"] = scale
        return {name: value.clone() for name, value in found.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint saves, and loads in place."""
        memory = {f"controller.{name}": value for name, value in self.memory.items()}
        return self.state._asdict() | memory

    def load_tensors(self, saved: Mapping[str, Tensor]) -> None:
        """Copy what `tensors` was into this objective's. Raises KeyError for one that is absent."""
        for name, value in self.tensors().items():
            value.copy_(saved[name])

    def update(
        self,
        statistics: StepStatistics,
        skipped: Tensor,
        progress: Progress,
        unknown: Iterable[str] = (),
    ) -> None:
        """Move `state` to the step at `progress`, from the all-reduced statistics of the step
        before it. If that was skipped (0-d, 1.), it stays as it was: statistics that are not finite
        must not move it. A controller that reads one of the statistics `unknown` raises ValueError.
        """
        seen, keep = statistics.per_source(), skipped > 0
        new = with_step_statistics(self.state, statistics, seen)
        both = zip(self.state, new, strict=True)
        new = ObjectiveState(*(x if x is old else torch.where(keep, old, x) for old, x in both))
        if self.controller is not None:
            names = set(unknown) & set(SourceStatistics._fields)
            missing: dict[str, Any] = {name: Unknown(name) for name in names}
            seen = seen._replace(**missing)
            self._update_memory(seen, keep, progress)
        self.state = self._moved(new)

    def _update_memory(self, seen: SourceStatistics, skipped: Tensor, progress: Progress) -> None:
        assert self.controller is not None
        memory = {name: value for name, value in self.memory.items() if name != "seen_tokens"}
        memory = self.controller.update(memory, seen, progress)
        memory["seen_tokens"] = self.memory["seen_tokens"] + seen.tokens
        # a source without a token in the step keeps its memory; a schedule needs no tokens to move
        counted = (seen.tokens > 0) & ~skipped
        moved = counted | self.controller.by_clock
        for name, value in self.memory.items():  # in place: checkpoints load into these tensors
            taken = counted if name == "seen_tokens" else moved
            value.copy_(torch.where(taken.view(-1, *[1] * (value.ndim - 1)), memory[name], value))

    def _moved(self, state: ObjectiveState) -> ObjectiveState:
        """The state with what the controller moves, each source drawn towards the common value as
        long as it has few tokens: (N own + kappa common) / (N + kappa), N its tokens so far,
        kappa = controller.shrinkage."""
        if self.controller is None:
            return state
        moved = {}
        tokens, kappa = self.memory["seen_tokens"][:-1], self.config.shrinkage
        share = tokens / (tokens + kappa) if kappa > 0 else torch.ones_like(tokens)
        for name in self.controller.moved_fields():
            own, common = self.memory[name][:-1], self.memory[name][-1:]
            moved[name] = (share * own + (1 - share) * common).float()
        return state._replace(**moved)


def with_step_statistics(
    state: ObjectiveState, statistics: StepStatistics, each: SourceStatistics
) -> ObjectiveState:
    """The state with `mean_p`, `sequence_nll` and the running mean of the token weights, `mass`,
    after this step; sources without a token in it keep their last value. `each` are its statistics
    per source."""
    seen, any_seen = each.tokens[:-1] > 0, each.tokens[-1] > 0
    mean_weight = (statistics.column("weight").sum() / each.tokens[-1]).float()
    mass = state.mass + (1 - MEAN_WEIGHT_EMA) * (mean_weight - state.mass)
    return state._replace(
        mean_p=torch.where(seen, each.mean_p[:-1].float(), state.mean_p),
        sequence_nll=torch.where(seen, each.sequence_nll[:-1].float(), state.sequence_nll),
        mass=torch.where(any_seen, mass, state.mass),
    )


def check_made_of(saved: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise CheckpointError where a state is of something else than what it is loaded into."""
    for name, value in here.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"the objective was saved with {name}={saved.get(name)}, and has {name}={value} "
                "here: make it as it was"
            )
