"""Data of lengths alone, and samplers of it."""

import numpy as np

from adaptsft.config.schema import Config
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.tokenized import TokenizedData


def sizes_only(counts=(100,), weights=(1.0,), seed: int = 0, longest: int = 60) -> TokenizedData:
    """Sources with so many examples of random length, without tokens: all that a sampler reads."""
    generator = np.random.default_rng(seed)
    total = sum(counts)
    lengths = generator.integers(2, longest + 1, total).astype(np.int32)
    target_tokens = (lengths * generator.random(total)).astype(np.int32).clip(1)
    source = np.repeat(np.arange(len(counts)), counts).astype(np.int16)
    names = [f"source{i}" for i in range(len(counts))]
    zeros = [0] * len(counts)
    return TokenizedData(
        names,
        list(weights),
        lengths,
        target_tokens,
        target_tokens.astype(np.float64),
        source,
        np.arange(total),
        [],
        zeros,
        zeros,
        [],
    )


def sampler_of(
    data: TokenizedData,
    batch: int = 16,
    micro: int = 2,
    packing: bool = True,
    world: int = 1,
    seed: int = 0,
    length: int = 64,
) -> BatchSampler:
    config = Config(seed=seed)
    config.train.global_batch_size, config.train.micro_batch_size = batch, micro
    config.data.packing, config.data.max_length = packing, length
    return BatchSampler(data, config, world)
