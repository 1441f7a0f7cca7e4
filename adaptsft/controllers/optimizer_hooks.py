"""The learning rate of an optimizer that is not ours, scaled in its step alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class OptimizerHooks:
    """While they are there, a step of the optimizer is taken at its learning rate times
    `lr_scale()` (0-d, or None: as it is); `before()` is called first.

    After the step the learning rate is a number again, for schedulers and checkpoints. With
    fused=True it is scaled on the device; other optimizers make the host wait for it.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr_scale: Callable[[], Tensor | None],
        before: Callable[[], None],
    ):
        self.lr_scale, self.before = lr_scale, before
        self.lrs: list[Any] = []  # of the optimizer's groups, in its step
        self.handles = [
            optimizer.register_step_pre_hook(self._scale),
            optimizer.register_step_post_hook(self._restore),
        ]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _scale(self, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        self.before()
        if (scale := self.lr_scale()) is None:
            return
        self.lrs = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * (scale if group.get("fused") else float(scale))

    def _restore(self, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        for group, lr in zip(optimizer.param_groups if self.lrs else (), self.lrs, strict=True):
            group["lr"] = lr
        self.lrs = []


def device_of(
    device: torch.device | str | None, optimizer: torch.optim.Optimizer | None
) -> torch.device:
    """The device that is named, or the optimizer's, or the accelerator, or the CPU."""
    if device is not None:
        return torch.device(device)
    if optimizer is not None:
        return optimizer.param_groups[0]["params"][0].device
    if torch.accelerator.is_available() and (found := torch.accelerator.current_accelerator()):
        return found
    return torch.device("cpu")
