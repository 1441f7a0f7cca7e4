"""A transformers model as FSDP2 modules: which parameters are gathered together, and what FSDP2
asks of a model that was built on meta."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from transformers import PreTrainedModel

from adaptsft.config.schema import TrainConfig
from adaptsft.errors import ConfigError
from adaptsft.model.modules import blocks, class_name, embedding_of, final_norm_of, head_of

# What build_model returns: a PreTrainedModel that fully_shard has made an FSDPModule, with
# token_loss as one more method. No type describes it.
ShardedModel = Any


def shard_dim(shape: Sequence[int], ranks: int) -> int:
    """The dimension along which a parameter of this shape is split over the ranks: the first, in
    parts of ceil(its size / ranks); of the stacked matrices of fewer experts than ranks, where
    ranks would be left with nothing, the last that divides evenly, if any does."""
    if len(shape) == 3 and shape[0] < ranks:
        even = [number for number in (2, 1) if shape[number] % ranks == 0]
        return even[0] if even else 0
    return 0


def shard_model(
    model: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype, reshard: bool
) -> None:
    """One FSDP2 group per decoder layer, one for the final norm and the head (with the embedding
    where they are tied), one for the rest. Compute is in `dtype`. `reshard`: layers are freed after
    their forward, and gathered again for backward.

    Gradients are summed, not averaged: the loss is already divided by the tokens of the whole step.
    A divide factor of 1 alone would use PREMUL_SUM, which gloo lacks and NCCL gets wrong in bf16
    (pytorch#190745), hence the forced plain sum.
    """
    ranks = mesh.shape[-1]  # with replicas, those of one copy

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(shard_dim(parameter.shape, ranks))

    dtypes = {dtype, *(parameter.dtype for parameter in model.parameters())}
    cast_to = None if dtypes == {torch.float32} else dtype
    policy = MixedPrecisionPolicy(param_dtype=cast_to, reduce_dtype=torch.float32)
    for block in blocks(model):
        fully_shard(
            block,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=reshard,
            shard_placement_fn=placement,
        )
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


def before_micro_batch(model: ShardedModel, train: TrainConfig, last: bool) -> None:
    """What its backward does with gradients and gathered weights; `last`: of the step.

    After the last one everything is resharded, whatever train.reshard: clipping and the optimizer
    see sharded weights and gradients.
    """
    model.set_requires_gradient_sync(last or train.reduce_every_micro_batch)
    model.set_requires_all_reduce(last)  # over replicas, once a step
    model.set_reshard_after_backward(last or train.reshard != "never")


def reshard(model: nn.Module) -> None:
    """After a forward without backward: groups that stay unsharded until backward would leave the
    optimizer a wrong view of the weights."""
    for module in fsdp_modules(model):
        module.reshard()


def restore_buffers(model: PreTrainedModel) -> None:
    """Recompute the buffers that no file holds (rotary frequencies, embedding scales): `to_empty`
    left garbage in them. Raises ConfigError for one that transformers does not rebuild."""
    modules = [module for module in model.modules() if module._non_persistent_buffers_set]
    left = _rebuild(model, modules, modules)
    # some are set by a module further up
    left = left and _rebuild(model, list(model.modules()), left)
    for module in left:
        raise ConfigError(
            f"{class_name(module)} of {class_name(model)} has a buffer "
            f"({', '.join(sorted(module._non_persistent_buffers_set))}) that transformers does not "
            "rebuild"
        )


def _rebuild(
    model: PreTrainedModel, callers: list[nn.Module], modules: list[nn.Module]
) -> list[nn.Module]:
    """Let transformers initialise `callers`, whose parameters are read from the files next; returns
    those of `modules` with buffers that are left as they were, whatever was in them."""
    for module in callers:
        for parameter in module.parameters(recurse=False):
            cast(Any, parameter)._is_hf_initialized = True  # transformers then leaves it alone
    results, owners = [], _owners(model)
    for garbage in (0, 1):
        for module in modules:
            for buffer in _unsaved(module):
                buffer.fill_(float("nan") if buffer.is_floating_point() else garbage)
        for module in callers:
            owners[module]._init_weights(module)
        results.append([[buffer.clone() for buffer in _unsaved(module)] for module in modules])
    return [
        module
        for module, first, second in zip(modules, *results, strict=True)
        if not all(map(torch.equal, first, second))  # NaN equals nothing
    ]


def _owners(model: PreTrainedModel) -> dict[nn.Module, PreTrainedModel]:
    """Of every module, the innermost model of transformers that holds it, whose initialisation is
    meant for it."""
    owners: dict[nn.Module, PreTrainedModel] = {model: model}
    for module in model.modules():  # from the outside in
        for child in module.children():
            owners[child] = child if isinstance(child, PreTrainedModel) else owners[module]
    return owners


def _unsaved(module: nn.Module) -> list[Tensor]:
    names = module._non_persistent_buffers_set
    return [buffer for name, buffer in module.named_buffers(recurse=False) if name in names]


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
