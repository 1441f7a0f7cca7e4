"""Models built on one rank, packs of documents of random tokens, and the operators that run."""

import itertools
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adaptsft.config.schema import ModelConfig, TrainConfig
from adaptsft.data.collator import Batch
from adaptsft.data.documents import Documents
from adaptsft.distributed.ranks import device_mesh
from adaptsft.model.build import build_model
from adaptsft.model.fsdp import ShardedModel
from adaptsft.model.pretrained import Pretrained, load_pretrained

LENGTHS = [[5, 9, 2], [16], [1, 8, 3, 4]]  # documents in three packs of 16 tokens


def packed_batch(lengths: list[list[int]], vocabulary: int, seed: int = 0) -> Batch:
    """Packs of documents of random tokens; every token but the first of a document is a target."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), sum(lengths[0]))
    ids = torch.randint(3, vocabulary, shape, generator=generator)
    flat = [length for pack in lengths for length in pack]
    bounds = torch.tensor([0, *flat]).cumsum(0)
    places = [torch.arange(begin, end - 1) for begin, end in itertools.pairwise(bounds)]
    target_idx = torch.cat(places)
    target_tokens = torch.tensor([length - 1 for length in flat])
    return Batch(
        ids=ids,
        positions=torch.cat([torch.arange(length) for length in flat]).view_as(ids),
        documents=Documents.build(bounds.int(), with_buckets=True),
        target_idx=target_idx,
        targets=ids.flatten()[target_idx + 1],
        source=torch.zeros_like(target_idx),
        sequence=torch.arange(len(flat)).repeat_interleave(target_tokens),
        sequence_lengths=target_tokens,
        sequence_source=torch.zeros_like(target_tokens),
    )


def built(folder: Path, device: torch.device, **settings: Any) -> tuple[ShardedModel, Pretrained]:
    """Trained in fp32, on one rank; `settings` are keys of the section model."""
    config = ModelConfig(path=str(folder), **settings)
    pretrained = load_pretrained(config)
    model = build_model(config, TrainConfig(), pretrained, device_mesh(device, 1), device)
    assert model.attention_backend == ("eager" if config.attention == "eager" else "sdpa")
    return model, pretrained


class Operators(TorchDispatchMode):
    """The operators that have run, by name, and their arguments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append((func.name(), args))
        return func(*args, **(kwargs or {}))
