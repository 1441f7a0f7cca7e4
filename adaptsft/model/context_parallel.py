"""Packs divided among ranks (train.context_parallel), for contexts too long for one of them.

Outside attention a rank has its part of the tokens of every pack. For attention the ranks exchange
tokens for heads: each then sees all tokens of its part of the heads, so that documents, windows,
soft caps and every attention back end are what they are on one rank (Ulysses, arXiv:2309.14509).
torch's own `context_parallel`, a ring, makes scaled_dot_product_attention that of one causal
sequence a row: documents of a pack would see each other, and none of its kernels runs on a CPU.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from adaptsft.data.collator import Batch
from adaptsft.distributed.ranks import ContextGroup
from adaptsft.errors import ConfigError
from adaptsft.model.modules import head_sizes, layer_configs
from adaptsft.objectives.reference import Reference
from adaptsft_kernels import TokenOutputs


def check_heads(size: int, model_config: Any) -> None:
    """Raise ConfigError where `size` ranks cannot share out the heads of a model."""
    layers = layer_configs(model_config.get_text_config())
    for heads in {getattr(layer, "num_attention_heads", None) for layer in layers}:
        if isinstance(heads, int) and heads % size:
            raise ConfigError(
                f"train.context_parallel={size} does not divide the {heads} attention heads of "
                f"model_type={model_config.model_type}, which its ranks share out: use a divisor"
            )


def exchanged(size: int, model_config: Any) -> int:
    """Numbers that `size` ranks exchange in a forward pass for each token: of every layer queries,
    keys and values, as `heads_for_tokens` repeats them, and outputs."""
    numbers = 0
    for layer in layer_configs(model_config.get_text_config()):
        heads = getattr(layer, "num_attention_heads", None) or 0
        key_heads = getattr(layer, "num_key_value_heads", None) or heads
        key_heads *= size // math.gcd(size, key_heads or size)
        numbers += (heads + key_heads) * sum(head_sizes(layer))
    return numbers


def part_of(batch: Batch, context: ContextGroup) -> Batch:
    """What this rank computes of a batch: its part of the B * L tokens as one row, and the targets
    that they predict. The documents stay those of the whole batch, of which attention sees all."""

    def own(tensor: Tensor) -> Tensor:  # [B, L] -> [1, B * L / size]
        return tensor.view(context.size, 1, -1)[context.rank]

    begin = sum(batch.targets_of_parts[: context.rank])
    span = slice(begin, begin + batch.targets_of_parts[context.rank])
    ids, weight, reference = own(batch.ids), batch.token_weight, batch.reference
    return dataclasses.replace(
        batch,
        ids=ids,
        positions=own(batch.positions),
        real=None if batch.real is None else own(batch.real),
        documents=batch.documents._replace(context=context),
        target_idx=batch.target_idx[span] - context.rank * ids.numel(),
        targets=batch.targets[span],
        source=batch.source[span],
        sequence=batch.sequence[span],
        token_weight=None if weight is None else weight[span],
        reference=None if reference is None else Reference(*(field[span] for field in reference)),
    )


@torch.no_grad()
def whole(
    tokens: TokenOutputs, kept: Tensor, batch: Batch, context: ContextGroup
) -> tuple[TokenOutputs, Tensor]:
    """Outputs and `kept` of all targets of `batch`, the same on all ranks, from those of each."""
    counts = batch.targets_of_parts
    own = torch.stack([field.to(tokens.logp.dtype) for field in (*tokens, kept)])
    own = F.pad(own, (0, max(counts) - own.shape[1]))
    parts = [torch.empty_like(own) for _ in counts]
    dist.all_gather(parts, own, group=context.group)
    each = [part[:, :count] for part, count in zip(parts, counts, strict=True)]
    *fields, kept_of = torch.cat(each, 1)
    of_all = TokenOutputs(*(a.to(b.dtype) for a, b in zip(fields, tokens, strict=True)))
    return of_all, kept_of.to(kept.dtype)


def heads_for_tokens(
    query: Tensor, key: Tensor, value: Tensor, context: ContextGroup
) -> tuple[Tensor, ...]:
    """[tokens / size, heads, head_dim] of this rank's tokens -> [tokens, heads / size, head_dim] of
    this rank's heads, of all three in one exchange.

    Where there are fewer key heads than ranks, or no multiple, each is repeated: a query head finds
    its own on its rank.
    """
    repeats = context.size // math.gcd(context.size, key.shape[1])
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    parts = [tensor.unflatten(1, (context.size, -1)) for tensor in (query, key, value)]
    shapes = [part.shape[2:] for part in parts]
    sent = torch.cat([part.transpose(0, 1).flatten(2) for part in parts], 2)
    received = _Exchange.apply(sent, context.group).flatten(0, 1)
    pieces = received.split([shape.numel() for shape in shapes], 1)
    return tuple(piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True))


def own_heads(of_heads: Tensor, context: ContextGroup) -> Tensor:
    """[heads] -> [heads / size]: what belongs to this rank's."""
    return of_heads.unflatten(0, (context.size, -1))[context.rank]


def tokens_for_heads(out: Tensor, context: ContextGroup) -> Tensor:
    """The way back: [tokens, heads / size, head_dim] -> [tokens / size, heads, head_dim]."""
    received = _Exchange.apply(out.unflatten(0, (context.size, -1)).contiguous(), context.group)
    return received.transpose(0, 1).flatten(1, 2)


class _Exchange(torch.autograd.Function):
    """[size, …]: part i goes to rank i; part i of the result comes from it."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(gradients[0].contiguous(), ctx.group), None


@contextmanager
def longest_position(model: nn.Module, positions: Tensor) -> Iterator[None]:
    """LongRoPE chooses the frequencies of a batch by its largest position: meanwhile every rank
    shows it the largest of `positions`, those of the whole batch."""
    longest = positions.max().view(1, 1)

    def append(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if len(args) > 1:  # (hidden states, positions); some models name them
            return (args[0], torch.cat([args[1], longest], 1), *args[2:]), kwargs
        return args, kwargs | {"position_ids": torch.cat([kwargs["position_ids"], longest], 1)}

    def cut(module: nn.Module, args: Any, out: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(part[:, :-1] for part in out)

    hooks = []
    for module in model.modules():
        if "longrope" in str(getattr(module, "rope_type", "")):
            hooks.append(module.register_forward_pre_hook(append, with_kwargs=True))
            hooks.append(module.register_forward_hook(cut))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
