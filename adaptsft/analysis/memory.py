"""Memory of a training step on one rank, without a GPU and without the model's weights: the model is built from config.json alone.

Three kinds of figures come out:

exact: bytes of fp32 parameters, their gradients and AdamW's moments on a rank: 4, 4 and 8 per trained parameter, half of each with
  model.param_dtype=bf16, each parameter split by rows into ceil(rows / ranks) (FSDP2,
  torch.distributed.fsdp._fully_shard._fsdp_param).
traced: activations. Forward and backward of the decoder run on fake tensors, which have shapes and no data, with the same code, attention
  seam and checkpointing as in training; every storage is counted while it lives. Assumed: full rows of one document each.
formula: what FSDP2 gathers and accumulates, and the loss's pieces of logits; see `Group`, `Memory` and `loss_bytes`.

Not counted: CUDA's context, cuBLAS workspace, NCCL's buffers, fragmentation.
"""

import dataclasses
import importlib.util
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM

from adaptsft.config.schema import Config, TrainConfig
from adaptsft.data.documents import Documents
from adaptsft.errors import ConfigError
from adaptsft.model import attention
from adaptsft.model.build import compute_dtype, freeze, prepare_block
from adaptsft.model.modules import blocks, final_norm_of, head_of
from adaptsft_kernels.linear_objective import rows_held


class Live(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still alive; `known` tensors are not counted."""

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
    """Stands for flash-attn and torch's varlen attention: keeps query, key, value, its output and an fp32 logsumexp per head and token."""
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
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    if kwargs["documents"].max_length < 0:  # varlen that groups no heads: keys are repeated
        k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
    return planned_attention(q, k, v)[0].view(batch, length, heads, -1), None


AttentionInterface.register("documents_plan", _attend)


@dataclass(frozen=True)
class Group:
    """Parameters that FSDP2 gathers and reduces together."""

    numel: int
    trained: int
    local: int  # on a rank, with padding
    local_trained: int

    @classmethod
    def of(cls, parameters: list[nn.Parameter], ranks: int) -> "Group":
        sizes = [
            (
                p.numel(),
                -(-p.shape[0] // ranks) * (p.numel() // max(p.shape[0], 1)),
                p.requires_grad,
            )
            for p in parameters
        ]
        trained = [(numel, local) for numel, local, wanted in sizes if wanted]
        return cls(
            sum(s[0] for s in sizes),
            sum(t[0] for t in trained),
            sum(s[1] for s in sizes),
            sum(t[1] for t in trained),
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, and when in a step they are highest. `element` is the size of the compute dtype, `master` that of the masters."""

    groups: list[
        Group
    ]  # the blocks, then `top` (norm and head; with tied weights the embedding), then `rest`
    ranks: int  # that a copy of the model is sharded over
    element: int
    master: int
    accumulates: bool  # several micro-batches
    reduces: bool  # the gradients of each of them at once
    kept: int  # activations at the end of the forward pass
    highest: int  # and at their highest in the backward pass
    loss: int  # pieces of logits, and the gradients of hidden states and head

    @property
    def parameters(self) -> int:
        return self.master * sum(group.local for group in self.groups)

    @property
    def gradients(self) -> int:
        return self.master * sum(group.local_trained for group in self.groups)

    @property
    def moments(self) -> int:
        return 2 * self.master * sum(group.local_trained for group in self.groups)

    @property
    def gathered(self) -> int:
        """Top and rest stay whole from forward to backward (reshard_after_forward=False; FSDP2 never reshards the root's group). Of the
        blocks one is whole; on several ranks the buffers of the all-gathers of the next and of the previous one overlap with it."""
        return self.element * (self.groups[-2].numel + self.groups[-1].numel) + self._block * (
            3 if self.ranks > 1 else 1
        )

    @property
    def _block(self) -> int:
        return self.element * max(group.numel for group in self.groups[:-2])

    @property
    def accumulated(self) -> int:
        """With several micro-batches set_requires_gradient_sync(False) keeps the gradients of *all* parameters whole, in the reduce dtype
        fp32, on every rank until the last one (FSDPParam.to_accumulated_grad_if_needed): sharding does not divide them. With
        train.reduce_every_micro_batch it is the sharded gradients that stay."""
        if not self.accumulates:
            return 0
        return self.gradients if self.reduces else 4 * sum(group.trained for group in self.groups)

    def reduction(self, group: Group) -> int:
        """A group's whole gradient in the compute dtype, and its fp32 copy for the reduce-scatter; one rank alone makes two copies."""
        return group.trained * (self.element + (4 if self.ranks > 1 else 8))

    @property
    def stages(self) -> dict[str, int]:
        """Bytes when memory may be highest; their maximum is the peak."""
        several = self.ranks > 1
        top, rest = self.groups[-2], self.groups[-1]
        base = self.parameters + self.moments
        # in the last micro-batch, accumulated gradients turn into sharded ones group by group: counted whole until all blocks are reduced
        before = base + self.accumulated
        forward = before + self.gathered + self.kept
        block = max(self.groups[:-2], key=lambda group: group.numel)
        # once the forward pass is over, the buffer of its last all-gather is left; in the backward pass that of the next block
        after = forward - self._block * (2 if several else 1)
        backward = (
            before + self.element * rest.numel + self._block * (2 if several else 1) + self.highest
        )
        return {
            "in the forward pass": forward,
            "in the loss": after + self.loss,
            "reducing the head": after + self.reduction(top),
            "in the backward pass": backward
            + (0 if self.reduces else self.master * top.local_trained)
            + self.reduction(block),
            "at the end of the backward pass": base
            + self.gradients
            + self.element * rest.numel
            + self.reduction(rest),
            "in the optimizer step": base + self.gradients,
        }

    @property
    def peak(self) -> int:
        return max(self.stages.values())


def trace(
    config: Config, model_config: Any, gpu: bool, gpus: int, micro_batches: int
) -> tuple[Memory, int, int]:
    """(memory of a rank, parameters, trained parameters). Raises ConfigError, as training would."""
    train, tokens = config.train, config.train.micro_batch_size * config.data.max_length
    if gpus < 1 or gpus % train.replicas:
        raise ConfigError(f"train.replicas={train.replicas} does not divide --gpus {gpus}")
    dtype = compute_dtype(config.model, torch.device("cuda" if gpu else "cpu"))
    settings = model_config.get_text_config()
    backend = _attention(config, settings, gpu, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(
            model_config,
            attn_implementation=attention.SEAM["sdpa"] if backend == "sdpa" else "documents_plan",
            dtype=dtype,
            trust_remote_code=config.model.trust_remote_code,
        )
        model.config.use_cache = False
        freeze(model, config.model.freeze)
        groups = [Group.of(members, gpus // train.replicas) for members in _groups(model)]
        head = head_of(model)
        loss = loss_bytes(tokens, head, settings, train, dtype, gpu)
        for block in blocks(model):
            prepare_block(block, dataclasses.replace(train, compile=False))
        for parameter in model.parameters():
            if parameter.requires_grad:  # gradients are counted by formula
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        rows = (train.micro_batch_size, config.data.max_length)
        ids = torch.zeros(rows, dtype=torch.long)
        buckets, inverse = (
            (torch.zeros(rows, dtype=torch.long),),
            torch.zeros(tokens, dtype=torch.long),
        )
        repeated = backend == "varlen" and not attention.VARLEN_GROUPS_HEADS
        length = -1 if repeated else rows[1]
        offsets = ids.new_zeros(rows[0] + 1, dtype=torch.int32)
        documents = Documents(offsets, length, buckets, inverse)
        with Live([*model.parameters(), *model.buffers()]) as live:
            hidden = model.base_model(
                input_ids=ids, position_ids=ids, documents=documents, use_cache=False
            ).last_hidden_state
            kept = live.now
            if hidden.requires_grad:
                torch.autograd.backward(hidden, torch.empty_like(hidden))
        parameters, trained = (
            sum(p.numel() for p in model.parameters()),
            sum(p.numel() for p in model.parameters() if p.requires_grad),
        )
    reduces, master = (
        train.reduce_every_micro_batch,
        2 if config.model.param_dtype == "bf16" else 4,
    )
    return (
        Memory(
            groups,
            gpus // train.replicas,
            dtype.itemsize,
            master,
            micro_batches > 1,
            reduces,
            kept,
            live.peak,
            loss,
        ),
        parameters,
        trained,
    )


def _attention(config: Config, settings: Any, gpu: bool, dtype: torch.dtype) -> str:
    """What adaptsft.model.attention.choose would take on a GPU of compute capability 8.0 or above."""
    if config.model.attention != "auto":
        return config.model.attention
    if not gpu or dtype == torch.float32:
        return "sdpa"
    if importlib.util.find_spec("flash_attn") is not None and not attention.unfit(
        "flash", settings
    ):
        return "flash"
    return "sdpa" if attention.unfit("varlen", settings) else "varlen"


def _groups(model: Any) -> list[list[nn.Parameter]]:
    """The groups that adaptsft.model.fsdp.shard_model makes: the blocks, top, rest."""
    found = [list(block.parameters()) for block in blocks(model)]
    norm = final_norm_of(model)
    top = [*norm.parameters(), *head_of(model).parameters()] if norm is not None else []
    taken = {id(parameter) for group in [*found, top] for parameter in group}
    return [
        *found,
        top,
        [parameter for parameter in model.parameters() if id(parameter) not in taken],
    ]


def loss_bytes(
    tokens: int, head: nn.Linear, settings: Any, train: TrainConfig, dtype: torch.dtype, gpu: bool
) -> int:
    """What adaptsft_kernels.linear_objective holds at its highest, if every token is supervised: on a GPU a piece of the logits and the
    gathered gradients of several; in torch two fp32 buffers of a piece (three with a soft cap); and the gradients of the hidden states
    and of the head, the latter in fp32 if it is a sum."""
    vocabulary, width = head.weight.shape
    logits = torch.bfloat16 if train.loss_logits == "bf16" else torch.float32
    held, gathered = rows_held(
        tokens, vocabulary, dtype, logits, "cuda" if gpu else "cpu", train.loss_chunk
    )
    triton = gpu and train.loss_implementation != "torch"
    if triton:
        buffers = vocabulary * (min(held, tokens) * logits.itemsize + gathered * dtype.itemsize)
    else:
        buffers = (
            4
            * vocabulary
            * min(held, tokens)
            * (3 if getattr(settings, "final_logit_softcapping", None) else 2)
        )
    whole = triton and gathered >= tokens  # one product is all of the head's gradient
    d_head = (
        (dtype.itemsize if whole else 4) * vocabulary * width if head.weight.requires_grad else 0
    )
    weight = (
        4 * vocabulary * width if not gpu and dtype.itemsize < 4 else 0
    )  # the CPU multiplies in fp32
    return buffers + dtype.itemsize * tokens * width + d_head + weight
