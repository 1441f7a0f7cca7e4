"""The interface of a controller, what moves the objective's parameters during training.

A controller is pure: `update(state, seen, moment) -> state`. Its state and what it sees are device tensors with one row per source
and a last row for all sources together, so that no step waits for the host. It sees the all-reduced statistics of steps that are
over: the same on every rank, whatever the split of the tokens. A new controller is one class and `@register("name")` above it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from adaptsft.statistics.step import SourceStatistics

State = dict[str, Tensor]  # each fp64 [sources + 1, …]


class Progress(NamedTuple):
    """Where the run will be in the step that the new state is for. Numbers that the host knows."""

    step: int  # 0-based
    steps: int
    lr: float  # learning rate as a share of its peak, and whether it is still warming up
    warming: bool

    @property
    def progress(self) -> float:
        """0 in the first step, 1 in the last, and in the one that would follow it: the control of the last evaluation."""
        return min(self.step / max(self.steps - 1, 1), 1.0)


@dataclasses.dataclass(frozen=True)
class Controller:
    """The fields of a subclass are its parameters, which `controller.params` may set; `check` refuses values that cannot work.

    The state's entries named as in `moves` are what the control gets; other entries are the controller's memory.
    """

    name: ClassVar[str] = ""
    objective: ClassVar[str] = (
        "alpha"  # the objective that it acts through, where objective.name is not set
    )
    moves: ClassVar[tuple[str, ...]] = ("alpha",)

    def moved_fields(self) -> tuple[str, ...]:
        """Fields of ObjectiveState that it moves; its state has an entry of that name for each."""
        return self.moves

    def check(self) -> str | None:
        """What is wrong with the parameters, as `key=value: reason`, or None."""
        return None

    def start(self, rows: int, device: torch.device, base: SourceStatistics | None) -> State:
        """The state of the first step; `base` are the base model's statistics on the training data, where they were measured."""
        raise NotImplementedError

    def update(self, state: State, seen: SourceStatistics, moment: Progress) -> State:
        """The state of the step `moment`, from that of the step before it and that step's statistics."""
        raise NotImplementedError


REGISTRY: dict[str, type[Controller]] = {}


def register(name: str) -> Callable[[type[Controller]], type[Controller]]:
    """Make a Controller available as `controller.name=<name>`. Raises ValueError if the name is taken."""

    def add(cls: type[Controller]) -> type[Controller]:
        if name in REGISTRY:
            raise ValueError(f"a controller called {name} is registered already")
        cls = dataclasses.dataclass(frozen=True)(cls)
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return add


def parameters(cls: type[Controller]) -> dict[str, Any]:
    """Names and defaults of what `controller.params` may set."""
    return {field.name: field.default for field in dataclasses.fields(cls)}


def full(rows: int, value: float, device: torch.device) -> Tensor:
    return torch.full((rows,), value, dtype=torch.float64, device=device)
