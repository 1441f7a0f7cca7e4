"""AdamW, its learning rate, and a step that all ranks take or skip without asking the host."""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from adaptsft.config.schema import TrainConfig
from adaptsft.controllers.base import Progress


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on matrices only."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    decayed = ((matrices, config.weight_decay), (vectors, 0.0))
    groups = [{"params": params, "weight_decay": decay} for params, decay in decayed if params]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True
    )


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (0-based) of `steps`: linear warm-up, then the shape
    of train.lr_schedule."""
    warmup = _warmup_steps(steps, config)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    match config.lr_schedule:
        case "constant":
            shape = 1.0
        case "linear":
            shape = 1.0 - share
        case "cosine":
            shape = 0.5 + 0.5 * math.cos(math.pi * share)
        case "wsd":
            decay = math.ceil(config.decay_ratio * steps)
            # its first step is at the peak still: of one alone, nothing would be seen
            decay = max(decay, 2) if decay and steps > 1 else decay
            shape = min(1.0, (steps - step) / decay) if decay else 1.0
        case name:
            raise AssertionError(name)
    return config.lr * (config.lr_min_ratio + (1.0 - config.lr_min_ratio) * shape)


def progress_at(step: int, steps: int, config: TrainConfig) -> Progress:
    """What controllers know of optimizer step `step` (0-based) of `steps`."""
    share = learning_rate(step, steps, config) / (config.lr or 1.0)
    return Progress(step, steps, share, step < _warmup_steps(steps, config))


def _warmup_steps(steps: int, config: TrainConfig) -> int:
    return math.ceil(config.warmup_ratio * steps)


@torch.no_grad()
def clipped(model: nn.Module, scale: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """(the norm of all gradients times `scale` (0-d), before clipping; what `guarded_step` is to
    divide them by, so that they are scaled and their norm is clipped to `max_norm` (0: never)), 0-d
    fp32 both. The gradients stay as they are: a pass over all of them less.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = _total_norm(gradients) * scale
    excess = ((norm + 1e-6) / max_norm).clamp(min=1.0) if max_norm > 0 else 1.0
    return norm, excess / scale


def _total_norm(gradients: list[Tensor]) -> Tensor:
    """0-d fp32, on every rank. What torch.nn.utils.get_total_norm does, except that it would round
    the norm of bf16 gradients to three digits."""
    if gradients[0].device.type == "cpu":
        # its kernel for norms adds one square after the other: of a matrix of a million elements
        # up to 4e-5 is lost, more of a larger one, and less of it the more ranks there are
        squares = torch.stack([gradient.float().square().sum() for gradient in gradients]).sum()
        return _whole(squares).sqrt()
    norms = torch._foreach_norm(gradients, 2.0, dtype=torch.float32)
    return _whole(torch.linalg.vector_norm(torch.stack(norms)))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def guarded_step(
    optimizer: torch.optim.AdamW, lr: float, skip: Tensor, divisor: Tensor | None = None
) -> None:
    """Take the optimizer step at `lr` with the gradients over `divisor` (0-d fp32), unless `skip`
    is 1. (0-d, 0. or 1.): then weights and moments stay bitwise as they were. Both are the same on
    all ranks.

    The fused kernel reads them on the device, from the attributes that torch.amp.GradScaler sets
    for the same purpose, and divides in fp32, also gradients in bf16.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.grad_scale = divisor  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
