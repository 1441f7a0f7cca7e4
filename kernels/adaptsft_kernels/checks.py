"""What the inputs of a head must be."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from adaptsft_kernels.row_kernels import accumulator


def as_autocast(hidden: Tensor, *others: Tensor | None) -> list[Any]:
    """Under autocast these in its dtype, as for a linear layer, but for fp64."""
    inputs, device = (hidden, *others), hidden.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return list(inputs)
    dtype = torch.get_autocast_dtype(device)
    return [x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in inputs]


def dtype_of_logits(asked: torch.dtype | None, hidden: torch.dtype) -> torch.dtype:
    """`asked`, or for None what products of such factors are summed in. Raises ValueError."""
    usual = accumulator(hidden)
    if asked not in (None, usual, hidden):
        raise ValueError(f"logits_dtype={asked} must be {usual} or that of hidden, {hidden}")
    return asked or usual


def check_range(targets: Tensor, vocabulary: int) -> None:
    """Raise ValueError for targets outside of [0, vocabulary). On CUDA, reading them would wait for
    the device: there, the device checks them, and what runs after it fails, as in torch's own
    losses (RuntimeError, or torch.AcceleratorError; CUDA_LAUNCH_BLOCKING=1 shows where)."""
    if not targets.numel():
        return
    if targets.device.type != "cpu":
        inside = ((targets >= 0) & (targets < vocabulary)).all()
        torch._assert_async(inside, f"targets must be in [0, {vocabulary}), or ignore_index")
        return
    low, high = int(targets.min()), int(targets.max())
    if not 0 <= low <= high < vocabulary:
        raise ValueError(f"targets must be in [0, {vocabulary}), found {low} to {high}")


def check_head(
    hidden: Tensor,
    weight: Tensor,
    of_rows: dict[str, Tensor | None],
    target_idx: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Raise ValueError unless hidden [N,D], weight [V,D], bias [V] and `of_rows`, each [N] (or [n]
    like target_idx), fit each other."""
    if isinstance(weight, DTensor):
        raise ValueError(
            "weight is a DTensor, sharded or replicated over ranks: whole, its gradient would be "
            "that of this rank alone; call this in the forward of a module whose weights FSDP2 has "
            "gathered, where it is a plain tensor"
        )
    shapes = f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden must be [N,D] and weight [V,D]; found {shapes}")
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    if hidden.dtype != weight.dtype or hidden.dtype not in dtypes:
        raise ValueError(
            "hidden and weight must both be fp32, bf16 or fp64; "
            f"found {hidden.dtype} and {weight.dtype}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(
            f"bias must be [{len(weight)}] of {weight.dtype}, like weight; "
            f"found {tuple(bias.shape)} of {bias.dtype}"
        )
    rows, owner = (hidden, "hidden") if target_idx is None else (target_idx, "target_idx")
    for name, value in of_rows.items():
        if value is not None and value.shape != rows.shape[:1]:
            raise ValueError(
                f"{name} must have one entry per row of {owner}, [{len(rows)}]; "
                f"found {tuple(value.shape)}"
            )
