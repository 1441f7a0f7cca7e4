"""A controller of the user's own is moved once, before anything is loaded and on the CPU."""

from pathlib import Path

import torch

from adaptsft.config.user_code import errors_of
from adaptsft.controllers.base import Controller, Progress, State, full
from adaptsft.errors import require
from adaptsft.statistics.step import BINS, SourceStatistics

SIZE = 3  # two sources, and all together
CPU = torch.device("cpu")


def try_out(start: str, controller: Controller, path: Path) -> None:
    """Raise ConfigError, which begins with `start`, for what a controller of this file raises, and
    for a state of which AdaptiveObjective could make nothing."""
    seen = {name: full(SIZE, 0.5, CPU) for name in SourceStatistics._fields}
    seen["histogram"] = torch.full((SIZE, BINS), 1 / BINS, dtype=torch.float64)
    second = Progress(step=1, steps=10, lr=1.0, warming=False)
    with errors_of(path, f"{start}: "):
        first = controller.initial_state(SIZE, CPU, None)
        _check(f"{start}: initial_state", controller, first, first)
        copied = {name: value.clone() for name, value in first.items()}
        moved = controller.update(copied, SourceStatistics(**seen), second)
        _check(f"{start}: update", controller, moved, first)


def _check(start: str, controller: Controller, state: State, first: State) -> None:
    entries = {*first, *controller.moved_fields(), *["lr_scale"] * controller.scales_lr}
    found = list(state) if isinstance(state, dict) else type(state).__name__
    require(
        isinstance(state, dict) and entries <= state.keys(),
        f"{start} must return a dict of {', '.join(sorted(entries))}; found {found}",
    )
    for name in sorted(entries):
        value = state[name]
        fits = isinstance(value, torch.Tensor) and value.shape == first[name].shape
        require(
            fits and value.shape[:1] == (SIZE,),
            f"{start}: {name} must be a tensor with an entry per source and one more, [{SIZE}] "
            f"here; found {list(value.shape) if isinstance(value, torch.Tensor) else value!r}",
        )
    for name in controller.moved_fields():
        require(
            bool(state[name].isfinite().all()),
            f"{start}: {name} is not finite: {state[name].tolist()}",
        )
