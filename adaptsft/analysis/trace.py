"""Activations of a training step, without a GPU and without the model's weights: the model is built
from config.json alone.

Forward and backward of the decoder run on fake tensors, which have shapes and no data, with the
same code, attention seam and checkpointing as in training; every storage is counted while it lives.
Assumed: full packs of one document each.
"""

import dataclasses
import importlib.util
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from adaptsft.analysis.memory import Group, Memory, loss_bytes
from adaptsft.config.schema import Config, TrainConfig, packs_at_once
from adaptsft.data.documents import Documents
from adaptsft.errors import ConfigError
from adaptsft.model import attention
from adaptsft.model.build import compute_dtype, freeze
from adaptsft.model.compile import prepare_block
from adaptsft.model.context_parallel import check_heads, exchanged
from adaptsft.model.language import causal_lm
from adaptsft.model.lora import add_adapters
from adaptsft.model.mixers import keep_documents_apart, mixers, refuse_mixers
from adaptsft.model.modules import blocks, final_norm_of, head_of
from adaptsft.model.sinks import attend_with_sinks
from adaptsft.model.supported import named_errors, refuse_unsupported
from adaptsft.training.flops import Operations, active_parameters, operations


class Traced(NamedTuple):
    memory: Memory  # of a rank
    parameters: int  # of the model
    trained: int  # those that are not frozen
    active: float  # those that a token meets: of experts some
    operations: Operations  # of a token, in full packs of one document
    groups: Callable[[int], list[Group]]  # Memory.groups by the ranks that share a copy
    loss: Callable[[TrainConfig], int]  # Memory.loss
    train: TrainConfig
    exchanged: Callable[[int], int]  # numbers per token and forward pass, among so many ranks
    layers: int
    mixes: bool  # has layers, other than attention, that train.context_parallel cannot share

    def under(self, train: TrainConfig, gpus: int, micro_batches: int) -> Memory:
        """The memory under other settings, without tracing again: the checkpointing of activations
        must be the same, and these are proportional to a rank's tokens of a micro-batch."""
        assert train.activation_checkpointing == self.train.activation_checkpointing
        size = packs_at_once(train) * self.train.context_parallel
        traced = packs_at_once(self.train) * train.context_parallel
        ranks = ranks_of(train, gpus)
        return dataclasses.replace(
            self.memory,
            groups=self.groups(ranks),
            ranks=ranks,
            replicas=train.replicas,
            accumulates=micro_batches > 1,
            reduces=train.reduce_every_micro_batch,
            reshards=train.reshard != "never",
            kept=self.memory.kept * size // traced,
            highest=self.memory.highest * size // traced,
            loss=self.loss(train),
        )


def ranks_of(train: TrainConfig, gpus: int) -> int:
    """That a copy of the model is sharded over. Raises ConfigError."""
    if gpus < 1 or gpus % train.replicas:
        raise ConfigError(f"train.replicas={train.replicas} does not divide --gpus {gpus}")
    if gpus // train.replicas % train.context_parallel:
        raise ConfigError(
            f"train.context_parallel={train.context_parallel} does not divide --gpus {gpus}"
            f"{'' if train.replicas == 1 else f' / train.replicas={train.replicas}'}"
        )
    return gpus // train.replicas


def trace(
    config: Config,
    model_config: Any,
    gpu: bool,
    gpus: int,
    micro_batches: int,
    activations: tuple[int, int] | None = None,
) -> Traced:
    """The memory of a rank; `activations`: Memory.kept and highest, where they are known, which
    saves most of the time. Raises ConfigError, as training would."""
    train = config.train
    ranks = ranks_of(train, gpus)
    check_heads(train.context_parallel, model_config)
    of_a_rank = -(-config.data.max_length // train.context_parallel)  # tokens of a pack
    dtype = compute_dtype(config.model, torch.device("cuda" if gpu else "cpu"))
    settings = model_config.get_text_config()
    backend = _attention(config, settings, gpu, dtype)
    # in attention a rank has all tokens of its part of the heads, which are as many numbers
    shape = (packs_at_once(train), of_a_rank)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"):  # as in training; PEFT cannot handle fake tensors
        own = backend in ("sdpa", "eager")
        name = attention.HF_ATTENTION_NAMES[backend] if own else "documents_plan"
        model = causal_lm(model_config, name, dtype, config.model.trust_remote_code)
        refuse_unsupported(model)
    if adapted := config.model.lora.rank > 0:
        add_adapters(model, config.model)
    with fake:
        _leave_meta(model, dtype if adapted else None)
        freeze(model, config.model.freeze)
        mixes = any(mixers(block) for block in blocks(model))
        if train.context_parallel > 1:
            refuse_mixers(model)
        if config.data.packing:
            keep_documents_apart(model)
        members = _groups(model)
        head = head_of(model)
        for block in blocks(model):
            prepare_block(block, train)
        kept, highest = activations or _activations(model, shape, backend)
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        length = np.array([config.data.max_length])
        counted = operations(model, length, length)
        active = active_parameters(model)

    def groups(ranks: int) -> list[Group]:
        return [Group.of(parameters, ranks) for parameters in members]

    def loss(train: TrainConfig) -> int:
        tokens = packs_at_once(train) * -(-config.data.max_length // train.context_parallel)
        return loss_bytes(tokens, head, settings, train, dtype, gpu)

    master = 2 if config.model.param_dtype == "bf16" else 4
    memory = Memory(
        groups=groups(ranks),
        ranks=ranks,
        replicas=train.replicas,
        element=dtype.itemsize,
        master=master,
        frozen=dtype.itemsize if adapted else master,
        accumulates=micro_batches > 1,
        reduces=train.reduce_every_micro_batch,
        reshards=train.reshard != "never",
        kept=kept,
        highest=highest,
        loss=loss(train),
    )
    parameters = sum(numel for numel, _ in sizes)
    trained = sum(numel for numel, requires_grad in sizes if requires_grad)

    def numbers(shared: int) -> int:
        return exchanged(shared, model_config)

    layers = len(blocks(model))
    return Traced(
        memory, parameters, trained, active, counted, groups, loss, train, numbers, layers, mixes
    )


def _leave_meta(model: nn.Module, of_trained: torch.dtype | None) -> None:
    """Tensors on the CPU in place of those on meta. `of_trained`: another dtype of what is trained,
    as FSDP2 gathers adapters."""
    made: dict[Tensor, Tensor] = {}  # some parameters are tied
    for module in model.modules():
        own = [*module._parameters.items(), *module._buffers.items()]
        for name, tensor in own:
            if tensor is None or not tensor.is_meta:
                continue
            if tensor not in made:
                made[tensor] = torch.empty_like(tensor, device="cpu")
                if isinstance(tensor, nn.Parameter):
                    whole = made[tensor].to((tensor.requires_grad and of_trained) or tensor.dtype)
                    made[tensor] = nn.Parameter(whole, tensor.requires_grad)
            setattr(module, name, made[tensor])


def _activations(model: Any, shape: tuple[int, int], backend: str) -> tuple[int, int]:
    """Bytes of activations at the end of the forward pass, and at their highest in the backward
    pass."""
    for parameter in model.parameters():
        if parameter.requires_grad:  # gradients are counted by formula
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    ids = torch.zeros(shape, dtype=torch.long)
    repeated = backend == "varlen" and not attention.VARLEN_GROUPS_HEADS
    documents = Documents(
        ids.new_zeros(shape[0] + 1, dtype=torch.int32),
        # no length at all tells `_attend` that keys are repeated
        ids.new_empty(0 if repeated else shape[1], 0, dtype=torch.int32),
        (torch.zeros_like(ids),),
        torch.zeros_like(ids).flatten(),
    )
    with Live([*model.parameters(), *model.buffers()]) as live:
        inputs = {"input_ids": ids, "use_cache": False}
        if backend != "eager":
            inputs |= {"position_ids": ids, "documents": documents}
        with named_errors(model):
            hidden = model.base_model(**inputs).last_hidden_state
        kept = live.now
        if hidden.requires_grad:
            torch.autograd.backward(hidden, torch.empty_like(hidden))
    return kept, live.peak


class Live(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still alive; `known` tensors are
    not counted."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                place = storage._cdata
                if place not in self.sizes and place not in self.known:
                    self.sizes[place] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._free, place)
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, place: int) -> None:
        self.now -= self.sizes.pop(place)


@torch.library.custom_op("adaptsft::planned_attention", mutates_args=())
def planned_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Stands for flash-attn and torch's varlen attention: keeps query, key, value, its output and
    an fp32 logsumexp per head and token."""
    raise AssertionError("only ever traced")


@planned_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)


@torch.library.custom_op("adaptsft::planned_attention_backward", mutates_args=())
def planned_attention_backward(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, grad: Tensor
) -> list[Tensor]:
    raise AssertionError("only ever traced")


@planned_attention_backward.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, grad: Tensor
) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (query, key, value)]


planned_attention.register_autograd(
    lambda ctx, grad, _: tuple(planned_attention_backward(*ctx.saved_tensors, grad)),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs, *output),
)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The seam of adaptsft.model.attention, with the same layouts, around `planned_attention`."""
    batch, heads, length, _ = query.shape
    flat = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    q, k, v = attention.of_one_size(*flat)
    if not len(kwargs["documents"].longest):  # varlen that groups no heads: keys are repeated
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
    if kwargs.get("s_aux") is not None:
        cu, more = kwargs["documents"].cu_seqlens, (length, 1.0, kwargs.get("sliding_window"))
        out = attend_with_sinks("varlen", q, k, v, kwargs["s_aux"], cu, *more)
    else:
        out = planned_attention(q, k, v)[0]
    return out[..., : value.shape[-1]].view(batch, length, heads, -1), None


AttentionInterface.register("documents_plan", _attend)


def _attention(config: Config, settings: Any, gpu: bool, dtype: torch.dtype) -> str:
    """What adaptsft.model.attention.choose takes on a GPU of compute capability 8.0 or above."""
    if config.model.attention != "auto":
        return config.model.attention
    if not gpu or dtype == torch.float32:
        return "sdpa"
    has_flash = importlib.util.find_spec("flash_attn") is not None
    if has_flash and not attention.unsupported_reason("flash", settings):
        return "flash"
    return "sdpa" if attention.unsupported_reason("varlen", settings) else "varlen"


def _groups(model: Any) -> list[list[nn.Parameter]]:
    """The groups that adaptsft.model.fsdp.shard_model makes: the blocks, top, rest."""
    found = [list(block.parameters()) for block in blocks(model)]
    norm = final_norm_of(model)
    top = [*norm.parameters(), *head_of(model).parameters()] if norm is not None else []
    taken = {id(parameter) for group in [*found, top] for parameter in group}
    return [*found, top, [p for p in model.parameters() if id(p) not in taken]]
