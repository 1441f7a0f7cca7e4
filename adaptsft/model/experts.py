"""The experts of a mixture: which of transformers' implementations computes them.

transformers sorts the tokens by expert and multiplies group by group (grouped_mm), where the layer
can be given an implementation. On Hopper and on Blackwell of data centres that is one kernel, of
bf16 alone; elsewhere torch (from compute capability 8.0) or transformers multiplies the groups one
by one, and the host waits for their sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, batched_mm_experts_forward

from adaptsft.model.modules import configured

BY_TOKEN = "adaptsft_by_token"
BYTES = 256 * 1024**2  # of gathered weights at a time
ONE_KERNEL = (9, 10)  # compute capabilities, of which torch has one for all experts


def _experts(module: nn.Module) -> list[nn.Module]:
    """Not those that every token passes, shared_experts."""
    return [m for name, m in module.named_modules() if name.rpartition(".")[2] == "experts"]


def has_experts(layer: nn.Module) -> bool:
    return bool(_experts(layer))


def experts_implementation(model: PreTrainedModel) -> str:
    """By which implementation its experts compute; "" where it has none."""
    modules = _experts(model)
    if not modules:
        return ""
    chosen = all(hasattr(module, "is_transposed") for module in modules)  # else there is no choice
    name = model.config.get_text_config()._experts_implementation
    return name if chosen and name else "eager"


def describe_experts(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> str:
    """`experts_implementation`, and whether this GPU takes it one expert at a time."""
    name = experts_implementation(model)
    if name != "grouped_mm" or device.type != "cuda":
        return name
    major, _ = torch.cuda.get_device_capability(device)
    if dtype == torch.bfloat16 and major in ONE_KERNEL:
        return name
    return f"{name} (expert by expert on this GPU: slow)"


@contextmanager
def experts_by_token(model: nn.Module) -> Iterator[None]:
    """Experts whose arithmetic for a token does not depend on which experts the other tokens go to,
    as it does where they are multiplied in groups: slow, for comparing bit by bit. Experts without
    a choice of implementation stay as they are."""
    with configured(model, "_experts_implementation", BY_TOKEN):
        yield


def _by_token(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """transformers' batched_mm, which gathers the weights of every token, some tokens at a time."""
    sizes = [p[0].numel() * p.element_size() for p in module.parameters(recurse=False)]
    count = max(1, BYTES // (max(sizes) * top_k_index.shape[-1]))
    parts = zip(
        hidden.split(count), top_k_index.split(count), top_k_weights.split(count), strict=True
    )
    return torch.cat([batched_mm_experts_forward(module, *part) for part in parts])


ALL_EXPERTS_FUNCTIONS.register(BY_TOKEN, _by_token)
