"""A transformers model as FSDP2 modules: which parameters are gathered together, and what FSDP2
asks of a model that was built on meta."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from adaptsft.errors import ConfigError
from adaptsft.model.modules import blocks, embedding_of, final_norm_of, head_of

# What build_model returns: a PreTrainedModel that fully_shard has made an FSDPModule, with
# token_loss as one more method. No type describes it.
ShardedModel = Any


def shard_model(model: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """One FSDP2 group per decoder layer, one for the final norm and the head (with the embedding
    where they are tied), one for the rest. Compute is in `dtype`.

    Gradients are summed, not averaged: the loss is already divided by the tokens of the whole step.
    A divide factor of 1 alone would use PREMUL_SUM, which gloo lacks and NCCL gets wrong in bf16
    (pytorch#190745), hence the forced plain sum.
    """
    cast_to = None if dtype == torch.float32 == next(model.parameters()).dtype else dtype
    policy = MixedPrecisionPolicy(param_dtype=cast_to, reduce_dtype=torch.float32)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    head, embedding, norm = head_of(model), embedding_of(model), final_norm_of(model)
    if norm is not None:
        # the head's own forward is never called: its group is unsharded by the forward of the norm
        # beside it, and stays so until backward
        top: list[nn.Module] = [norm]
        top += [embedding, head] if head.weight is embedding.weight else [head]
        fully_shard(top, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    # the root must not cast its inputs: the objective's state and the scale are fp32
    uncast = MixedPrecisionPolicy(cast_to, torch.float32, cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=uncast)
    for module in fsdp_modules(model):
        if mesh.size() > 1:  # given a factor, FSDP2 copies a single rank's gradients to divide them
            module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def reshard(model: nn.Module) -> None:
    """After a forward without backward: groups that stay unsharded until backward would leave the
    optimizer a wrong view of the weights."""
    for module in fsdp_modules(model):
        module.reshard()


def restore_buffers(model: PreTrainedModel) -> None:
    """Recompute the buffers that no file holds (rotary frequencies, embedding scales): `to_empty`
    left garbage in them. Raises ConfigError for one that transformers does not rebuild."""
    for module in model.modules():
        buffers = {
            name: buffer
            for name, buffer in module.named_buffers(recurse=False)
            if name in module._non_persistent_buffers_set
        }
        if not buffers:
            continue
        for parameter in module.parameters(recurse=False):
            # transformers then leaves it alone; it is read from the files next
            cast(Any, parameter)._is_hf_initialized = True
        floating = [buffer for buffer in buffers.values() if buffer.is_floating_point()]
        for buffer in floating:
            buffer.fill_(float("nan"))
        model._init_weights(module)
        not_rebuilt = any(bool(buffer.isnan().any()) for buffer in floating)
        if len(floating) < len(buffers) or not_rebuilt:
            raise ConfigError(
                f"{type(module).__name__} of {type(model).__name__} has a buffer "
                f"({', '.join(buffers)}) that transformers does not rebuild"
            )


@contextmanager
def evaluating(model: ShardedModel) -> Iterator[None]:
    """The model without dropout, for forwards without backward; then resharded and in training mode
    again."""
    model.eval()
    try:
        yield
    finally:
        model.train()
        reshard(model)
