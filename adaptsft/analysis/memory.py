"""Memory of a training step on one rank, from sizes alone. Three kinds of figures come together:

- exact: bytes of the parameters, their gradients and AdamW's moments on a rank, 4, 4 and 8 per
  trained parameter (half of each with model.param_dtype=bf16), 4 per frozen one (beside adapters
  that of model.compute_dtype), each parameter split along one dimension, the first but for some
  experts (adaptsft.model.fsdp.shard_dim), into ceil(size / ranks)
  (torch.distributed.fsdp._fully_shard._fsdp_param);
- traced: activations, see adaptsft.analysis.trace;
- formula: what FSDP2 gathers and accumulates, and the loss's chunks of logits, see `Group`,
  `Memory` and `loss_bytes`.

Not counted: CUDA's context, cuBLAS workspace, NCCL's buffers, fragmentation.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from adaptsft.config.schema import TrainConfig
from adaptsft.model.fsdp import shard_dim
from adaptsft_kernels.chunks import rows_held


@dataclass(frozen=True)
class Group:
    """Parameters that FSDP2 gathers and reduces together."""

    numel: int
    trained: int
    local: int  # on a rank, with padding
    local_trained: int

    @classmethod
    def of(cls, parameters: list[nn.Parameter], ranks: int) -> "Group":
        numel = trained = local = local_trained = 0
        for parameter in parameters:
            size = parameter.shape[shard_dim(parameter.shape, ranks)]
            own = -(-size // ranks) * (parameter.numel() // max(size, 1))
            numel, local = numel + parameter.numel(), local + own
            if parameter.requires_grad:
                trained, local_trained = trained + parameter.numel(), local_trained + own
        return cls(numel, trained, local, local_trained)


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, and when in a step they are highest."""

    # the blocks, then `top` (norm and head; with tied weights the embedding), then `rest`
    groups: list[Group]
    ranks: int  # that a copy of the model is sharded over
    replicas: int  # copies of the model
    element: int  # size of the compute dtype
    master: int  # size of the dtype of the trained parameters
    frozen: int  # and of the others
    accumulates: bool  # several micro-batches
    reduces: bool  # the gradients of each of them at once
    reshards: bool  # the blocks, after every forward and backward
    kept: int  # activations at the end of the forward pass
    highest: int  # and at their highest in the backward pass
    loss: int  # pieces of logits, and the gradients of hidden states and head

    @property
    def parameters(self) -> int:
        trained = self.master * sum(group.local_trained for group in self.groups)
        return trained + self.frozen_parameters

    @property
    def frozen_parameters(self) -> int:
        return self.frozen * sum(group.local - group.local_trained for group in self.groups)

    @property
    def gradients(self) -> int:
        return self.master * sum(group.local_trained for group in self.groups)

    @property
    def moments(self) -> int:
        return 2 * self.master * sum(group.local_trained for group in self.groups)

    @property
    def gathered(self) -> int:
        """Top and rest stay whole from forward to backward (reshard_after_forward=False; FSDP2
        never reshards the root's group). Of the blocks one is whole, or with train.reshard=never
        all; on several ranks the buffers of the all-gathers of the next and of the previous one
        overlap with them."""
        return self._whole + self._buffers

    @property
    def _whole(self) -> int:
        top, rest = self.groups[-2:]
        blocks = self._block if self.reshards else self._blocks
        return self.element * (top.numel + rest.numel) + blocks

    @property
    def _block(self) -> int:
        return self.element * max(group.numel for group in self.groups[:-2])

    @property
    def _blocks(self) -> int:
        return self.element * sum(group.numel for group in self.groups[:-2])

    @property
    def _buffers(self) -> int:
        return 2 * self._block if self.ranks > 1 else 0

    @property
    def accumulated(self) -> int:
        """With several micro-batches set_requires_gradient_sync(False) keeps the gradients of *all*
        parameters whole, in the reduce dtype fp32, on every rank until the last one
        (FSDPParam.to_accumulated_grad_if_needed): sharding does not divide them. With
        train.reduce_every_micro_batch it is the sharded gradients that stay, until replicas are
        summed in fp32."""
        if not self.accumulates:
            return 0
        if self.reduces:
            own = sum(group.local_trained for group in self.groups)
            return 4 * own if self.replicas > 1 else self.gradients
        return 4 * sum(group.trained for group in self.groups)

    def reduction(self, group: Group) -> int:
        """A group's whole gradient in the compute dtype, and its fp32 copy for the reduce-scatter;
        one rank alone makes two copies."""
        return group.trained * (self.element + (4 if self.ranks > 1 else 8))

    @property
    def stages(self) -> dict[str, int]:
        """Bytes when memory may be highest; their maximum is the peak."""
        several = self.ranks > 1
        top, rest = self.groups[-2:]
        base = self.parameters + self.moments
        # in the last micro-batch, accumulated gradients turn into sharded ones group by group:
        # counted whole until all blocks are reduced
        before = base + self.accumulated
        block = max(self.groups[:-2], key=lambda group: group.numel)
        # once the forward pass is over, the buffer of the last all-gather is left, that of top; in
        # the backward pass that of the next block
        buffers = {"blocks": self._buffers, "top": self.element * top.numel * several}
        if not self.reshards:  # the first micro-batch has them, the others accumulated gradients
            buffers = {name: max(size - self.accumulated, 0) for name, size in buffers.items()}
        whole, prefetched = self._whole - self._freed, self._freed * several
        backward = whole - self.element * top.numel + self._freed + prefetched
        backward += self.reduction(block) + (0 if self.reduces else self.master * top.local_trained)
        if not self.reshards and self.accumulates:
            # before the last micro-batch nothing is reduced, or freed
            backward = max(backward, whole + self.element * block.trained)
        end = base + self.gradients + self.element * rest.numel + self.reduction(rest)
        return {
            "in the forward pass": before + self._whole + buffers["blocks"] + self.kept,
            "in the loss": before + whole + buffers["top"] + self.kept + self.loss,
            "reducing the head": before + whole + prefetched + self.kept + self.reduction(top),
            "in the backward pass": before + backward + self.highest,
            "at the end of the backward pass": end,
            "in the optimizer step": base + self.gradients,
        }

    @property
    def _freed(self) -> int:
        """Of the last block, once its forward is over."""
        return self._block if self.reshards else 0

    @property
    def peak(self) -> int:
        return max(self.stages.values())


def loss_bytes(
    tokens: int, head: nn.Linear, settings: Any, train: TrainConfig, dtype: torch.dtype, gpu: bool
) -> int:
    """What adaptsft_kernels.linear_objective holds at its highest, if every token is a target.

    On a GPU a piece of the logits and the gathered gradients of several; in torch two fp32 buffers
    of a piece (three with a soft cap); and the gradients of the hidden states and of the head, the
    latter in fp32 if it is a sum.
    """
    vocabulary, width = head.weight.shape
    logits = torch.bfloat16 if train.loss_logits == "bf16" else torch.float32
    device = "cuda" if gpu else "cpu"
    held, gathered = rows_held(tokens, vocabulary, dtype, logits, device, train.loss_chunk)
    triton = gpu and train.loss_implementation != "torch"
    if triton:
        buffers = vocabulary * (min(held, tokens) * logits.itemsize + gathered * dtype.itemsize)
    else:
        softcap = getattr(settings, "final_logit_softcapping", None)
        buffers = 4 * vocabulary * min(held, tokens) * (3 if softcap else 2)
    whole = triton and gathered >= tokens  # one product is all of the head's gradient
    d_hidden = dtype.itemsize * tokens * width
    d_head = (dtype.itemsize if whole else 4) * vocabulary * width
    if not head.weight.requires_grad:
        d_head = 0
    # the CPU multiplies in fp32
    weight = 4 * vocabulary * width if not gpu and dtype.itemsize < 4 else 0
    # rows of one product: the result before it is rounded, and the hidden states, scaled
    rows = min(gathered if triton else held, tokens)
    scaled = rows * width * (4 + dtype.itemsize)
    return buffers + d_hidden + d_head + weight + scaled
