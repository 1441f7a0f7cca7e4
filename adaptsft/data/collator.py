"""Packs of examples -> the tensors of one forward."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adaptsft.data.documents import Documents, to_device
from adaptsft.data.packing import MicroBatch, assign_to_ranks, pack_examples
from adaptsft.data.tokenized import TokenizedData
from adaptsft.objectives.reference import Reference


@dataclass(frozen=True)
class Batch:
    """B packs (or padded examples) of L tokens with n target tokens in m sequences (examples)."""

    ids: Tensor  # int64 [B, L]
    positions: Tensor  # int64 [B, L], from 0 in each document
    documents: Documents  # the padding at the end of a pack makes documents of its own
    # int64 [n], ascending: flat index of the hidden state that predicts a target token
    target_idx: Tensor
    targets: Tensor  # int64 [n], that token
    source: Tensor  # int64 [n], its source
    sequence: Tensor  # int64 [n], its sequence, 0 … m - 1, ascending
    sequence_lengths: Tensor  # int64 [m], target tokens of each sequence
    sequence_source: Tensor  # int64 [m]
    # fp32 [n], of the token in the loss, on average 1 over the targets of the step; None: all are 1
    token_weight: Tensor | None = None
    # fp32 [n] each, what the base model makes of the token, where the objective reads it
    reference: Reference | None = None
    real: Tensor | None = None  # bool [B, L], False for padding; None: there is none
    # target tokens in each of the equal parts of the B * L tokens that the ranks of
    # train.context_parallel have; known to the host wherever the tensors are
    targets_of_parts: tuple[int, ...] = ()
    # int64 [m], their numbers in the data; set by collate, and on the host wherever the tensors are
    examples: np.ndarray | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; the host does not wait for the copies to a GPU."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: to_device(t, device) for name, t in tensors.items()}
        if self.reference is not None:
            moved["reference"] = Reference(*(to_device(t, device) for t in self.reference))
        return dataclasses.replace(self, documents=self.documents.to(device), **moved)


# Tokens of a document of padding where packs have a constant shape: attention within one document
# of all the padding would cost as much as within a document that is learned.
PADDING_DOCUMENT = 128


class ConstantShape(NamedTuple):
    """The shape of batches whose layers are compiled once for each shape."""

    rows: int  # at most
    tokens: int

    def rows_for(self, packs: int) -> int:
        """A power of two, so that a last, smaller micro-batch has one of few shapes."""
        return min(self.rows, 1 << (max(packs, 1) - 1).bit_length())


def collate(
    packs: MicroBatch,
    data: TokenizedData,
    *,
    pad_id: int,
    pad_multiple: int = 1,
    shape: ConstantShape | None = None,
    with_buckets: bool = True,
    reference: Callable[[int], np.ndarray] | None = None,
    weight_scale: float | None = None,
    parts: int = 1,
) -> Batch:
    """The batch of these packs, each as long as the longest, rounded up to pad_multiple; or, if
    given, of a constant shape. `parts` divides either; it is train.context_parallel.

    No packs give one of padding alone, so that a rank without work can still take part in the
    collectives; it has n = m = 0. `reference` gives what the base model makes of an example's
    target tokens (BaseTokens.of). `weight_scale`, if given, multiplies the weights of tokens that
    the data holds; without it these are left out.
    """
    tokens = [sum(int(data.lengths[i]) for i in pack) for pack in packs]
    length = -(-max(tokens, default=1) // pad_multiple) * pad_multiple
    count, padding = max(1, len(packs)), length
    if shape is not None:
        count, length, padding = shape.rows_for(len(packs)), shape.tokens, PADDING_DOCUMENT
    ids = np.full(count * length, pad_id, dtype=np.int64)
    positions = np.empty(count * length, dtype=np.int64)
    real = np.zeros(count * length, dtype=bool)
    bounds, target_idx, targets, target_tokens, sources = [0], [], [], [], []
    for number, pack in enumerate([*packs, *([[]] * (count - len(packs)))]):
        place, end = number * length, (number + 1) * length
        for example in pack:
            tokens_of, mask = data.example(example)
            ids[place : place + len(tokens_of)] = tokens_of
            real[place : place + len(tokens_of)] = True
            positions[place : place + len(tokens_of)] = np.arange(len(tokens_of))
            places = np.flatnonzero(mask)
            target_idx.append(place + places - 1)  # the hidden state before a token predicts it
            targets.append(tokens_of[places])
            target_tokens.append(len(places))
            sources.append(int(data.source[example]))
            place += len(tokens_of)
            bounds.append(place)
        if place < end:
            positions[place:end] = np.arange(end - place) % padding
            bounds += [*range(place + padding, end, padding), end]
    examples = [example for pack in packs for example in pack]
    sequence_lengths = torch.tensor(target_tokens, dtype=torch.int64)
    sequence_source = torch.tensor(sources, dtype=torch.int64)
    empty = np.empty(0, dtype=np.int64)
    measured = None
    if reference is not None:
        none = np.empty((len(Reference._fields), 0), np.float32)
        columns = np.concatenate([none, *map(reference, examples)], axis=1)
        measured = Reference(*map(torch.from_numpy, columns))
    token_weight = None
    if weight_scale is not None:
        weights = [empty.astype(np.float32), *(target_weights(data, i) for i in examples)]
        token_weight = torch.from_numpy(np.concatenate(weights)) * weight_scale
    predicting = torch.from_numpy(np.concatenate([empty, *target_idx]))
    return Batch(
        ids=torch.from_numpy(ids).view(count, length),
        positions=torch.from_numpy(positions).view(count, length),
        documents=Documents.build(torch.tensor(bounds, dtype=torch.int32), with_buckets),
        target_idx=predicting,
        targets=torch.from_numpy(np.concatenate([empty, *targets])),
        source=sequence_source.repeat_interleave(sequence_lengths),
        sequence=torch.arange(len(target_tokens)).repeat_interleave(sequence_lengths),
        sequence_lengths=sequence_lengths,
        sequence_source=sequence_source,
        token_weight=token_weight,
        reference=measured,
        real=torch.from_numpy(real).view(count, length),
        targets_of_parts=targets_of_parts(predicting, count * length, parts),
        examples=np.array(examples, dtype=np.int64),
    )


def targets_of_parts(target_idx: Tensor, tokens: int, parts: int) -> tuple[int, ...]:
    """How many of `target_idx` (on the host) lie in each of so many equal parts of the tokens."""
    return tuple((target_idx // (tokens // parts)).bincount(minlength=parts).tolist())


def target_weights(data: TokenizedData, example: int) -> np.ndarray:
    """float32 [target tokens]: the weight of each in the loss."""
    mask, weights = data.example(example)[1], data.weights_of(example)
    return np.ones(mask.sum(), np.float32) if weights is None else weights[mask]


def eval_batches(
    data: TokenizedData,
    *,
    micro_batch_size: int,
    max_length: int,
    packing: bool,
    pad_id: int,
    pad_multiple: int = 1,
    shape: ConstantShape | None = None,
    with_buckets: bool = True,
    world_size: int = 1,
    rank: int = 0,
    parts: int = 1,
) -> Iterator[Batch]:
    """Every example once, as the batches of one rank; every rank has the same number of batches.

    Examples are taken in order, some hundreds per rank at a time: enough for packing to find
    partners of fitting length.
    """
    window = 256 * world_size * micro_batch_size
    for begin in range(0, len(data), window):
        examples = np.arange(begin, min(begin + window, len(data)))
        packs = pack_examples(examples, data.lengths, max_length if packing else 0)
        for micro_batch in assign_to_ranks(packs, data.lengths, world_size, micro_batch_size)[rank]:
            yield collate(
                micro_batch,
                data,
                pad_id=pad_id,
                pad_multiple=pad_multiple,
                shape=shape,
                with_buckets=with_buckets,
                parts=parts,
            )
