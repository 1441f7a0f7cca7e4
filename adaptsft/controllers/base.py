"""The interface of a controller: what moves the objective's parameters during training.

A controller is pure: `update(state, statistics, progress) -> state`. Its state and the statistics
are device tensors with one entry per source and a last one for all sources together, so that no
step waits for the host. It sees the all-reduced statistics of steps that are over: the same on
every rank, whatever the split of the tokens. A new controller is one class with `@register("name")`
above it, or named by its user as `controller.name=my_module:Class`; a schedule is one too, see
adaptsft.controllers.schedules.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from adaptsft.config.schema import ControllerConfig, ObjectiveConfig
from adaptsft.errors import require_known
from adaptsft.objectives.state import MOVABLE
from adaptsft.statistics.step import SourceStatistics

State = dict[str, Tensor]  # each fp64 [sources + 1, …]
KEYS = tuple(field.name for field in dataclasses.fields(ControllerConfig))


class Progress(NamedTuple):
    """Where the run will be in the step that the new state is for. Numbers that the host knows."""

    step: int  # 0-based
    steps: int
    lr: float  # learning rate as a share of its peak, and whether it is still warming up
    warming: bool

    @property
    def share(self) -> float:
        """0 in the first step, 1 in the last, and in the one that would follow it: the state of the
        last evaluation."""
        return min(self.step / max(self.steps - 1, 1), 1.0)


@dataclasses.dataclass(frozen=True)
class Controller:
    """The fields of a subclass are its parameters, which `controller.params` may set: finite
    numbers with a default, in the range that `bounds` gives them, if any.

    The entries of the state named as in `moves` are what the objective gets; the others are the
    controller's memory.
    """

    name: ClassVar[str] = ""
    # the objective that it acts through, where objective.name is not set
    objective: ClassVar[str] = "alpha"
    moves: ClassVar[tuple[str, ...]] = ("alpha",)  # of MOVABLE
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}  # allowed range of its parameters
    # it follows the progress of the run alone: a source without a token in a step moves as well
    by_clock: ClassVar[bool] = False
    # its state has an entry `lr_scale`, whose last element multiplies the learning rate
    scales_lr: ClassVar[bool] = False
    # keys of the group `controller`, besides `params`, that it reads; for schedules
    reads: ClassVar[tuple[str, ...]] = ()

    def moved_fields(self) -> tuple[str, ...]:
        """Fields of ObjectiveState that it moves; its state has an entry of that name for each."""
        return self.moves

    def check(self) -> str | None:
        """What is wrong with the combination of parameters, or None."""
        return None

    def initial_state(
        self, size: int, device: torch.device, base: SourceStatistics | None
    ) -> State:
        """The state of the first step; `size` is the number of sources + 1, and `base` the base
        model's statistics on the training data, where they were measured. By default NLL: alpha and
        lower are 0, upper is 1."""
        neutral = ObjectiveConfig()
        return {name: full(size, getattr(neutral, name), device) for name in self.moved_fields()}

    def update(self, state: State, statistics: SourceStatistics, progress: Progress) -> State:
        """The state of the step at `progress`, from state and statistics of the step before."""
        raise NotImplementedError(f"{type(self).__name__} has no update")


REGISTRY: dict[str, type[Controller]] = {}


def register(name: str) -> Callable[[type[Controller]], type[Controller]]:
    """Make a Controller available as `controller.name=<name>`.

    Raises ValueError if the name is taken, and what `completed` raises.
    """

    def add(cls: type[Controller]) -> type[Controller]:
        if name in REGISTRY or name == "fixed":
            raise ValueError(f"a controller called {name} is registered already")
        REGISTRY[name] = cls = completed(name, f"controller {name}", cls)
        return cls

    return add


def completed(name: str, start: str, cls: type[Controller]) -> type[Controller]:
    """The class with its name, and its annotated fields as parameters.

    Raises ValueError, which begins with `start`, for a misspelt `moves`, `reads` or `bounds`, and
    for a parameter without a number as default.
    """
    for part in reversed(cls.__mro__):  # a class of the user's own that this one is built on, too
        if issubclass(part, Controller) and "__dataclass_fields__" not in vars(part):
            try:
                dataclasses.dataclass(frozen=True)(part)
            except (TypeError, ValueError) as error:  # no default, or one that can change
                raise ValueError(f"{start}: {error}") from None
    cls.name = name
    for field in cls.moves:
        require_known(f"{start}: moves={field}", field, MOVABLE, ValueError)
    for key in cls.reads:
        require_known(f"{start}: reads={key}", key, KEYS, ValueError)
    for key, default in parameters(cls).items():
        if not isinstance(default, int | float):
            raise ValueError(f"{start}: its parameter {key} must have a number as default")
    for key in cls.bounds:
        require_known(f"{start}: bounds of {key}", key, parameters(cls), ValueError)
    return cls


def parameters(cls: type[Controller]) -> dict[str, Any]:
    """Names and defaults of what `controller.params` may set: its fields, but for the `settings` of
    a schedule."""
    fields = dataclasses.fields(cls)
    return {field.name: field.default for field in fields if field.name != "settings"}


def full(size: int, value: float, device: torch.device) -> Tensor:
    return torch.full((size,), value, dtype=torch.float64, device=device)
