"""Batches on the device: one background thread prepares the next step's while a step runs."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from adaptsft.config.schema import Config, is_packed, packs_at_once
from adaptsft.data.collator import Batch, ConstantShape, collate, eval_batches
from adaptsft.data.tokenized import TokenizedData
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import data_ranks


class BatchLoader:
    """This rank's micro-batches of every optimizer step; those of train.context_parallel ranks are
    the same.

    It has no state: the sampler is a pure function of the step. `with_buckets` is whether the model
    reads documents in buckets of similar length. `reference`, if given, maps an example to what the
    base model makes of its target tokens (BaseTokens.of). `compiled`: packs are padded to
    data.max_length, so that compiled layers see one shape. A context manager.
    """

    def __init__(
        self,
        data: TrainingData,
        config: Config,
        pad_id: int,
        with_buckets: bool,
        device: torch.device,
        reference: Callable[[int], np.ndarray] | None = None,
        compiled: bool = False,
    ):
        self.data, self.config, self.pad_id, self.device = data, config, pad_id, device
        self.with_buckets, self.reference = with_buckets, reference
        settings, rows = config.data, packs_at_once(config.train)
        self.parts = config.train.context_parallel
        self.rank, self.world_size = data_ranks(self.parts)
        self.multiple = math.lcm(settings.pad_multiple, self.parts)
        longest = -(-settings.max_length // self.multiple) * self.multiple
        self.shape = ConstantShape(rows, longest) if compiled and is_packed(settings) else None
        self.pool = ThreadPoolExecutor(1)
        self.ahead: dict[int, Future[list[Batch]]] = {}

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.shutdown()

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of a step (0-based); those of the next one are prepared meanwhile."""
        ready = self.ahead.pop(step, None)
        if step + 1 < min(self.data.steps, self.data.sampler.end):
            self.ahead[step + 1] = self.pool.submit(self.load, step + 1)
        return ready.result() if ready is not None else self.load(step)

    def first_batch(self) -> Batch:
        """The first micro-batch of the first step that the data holds."""
        return self.load(self.data.sampler.first)[0]

    def padding(self) -> float:
        """Share of the tokens of this rank's first step that is padding, where packs have a
        constant shape."""
        assert self.shape is not None
        sampler, shape = self.data.sampler, self.shape
        micro_batches = sampler.micro_batches(sampler.first, self.rank)
        examples = [i for packs in micro_batches for pack in packs for i in pack]
        computed = sum(shape.rows_for(len(packs)) * shape.tokens for packs in micro_batches)
        return 1.0 - float(sampler.data.lengths[examples].sum()) / computed

    def load(self, step: int) -> list[Batch]:
        """The micro-batches of a step, prepared now."""
        sampler = self.data.sampler
        collated = (
            collate(
                packs,
                sampler.data,
                pad_id=self.pad_id,
                pad_multiple=self.multiple,
                shape=self.shape,
                with_buckets=self.with_buckets,
                parts=self.parts,
                reference=self.reference,
                weight_scale=sampler.weight_scale(step) if sampler.data.is_weighted else None,
            )
            for packs in sampler.micro_batches(step, self.rank)
        )
        return [batch.to(self.device) for batch in collated]

    def in_order(self, data: TokenizedData) -> Iterator[Batch]:
        """All of `data` once, spread over the ranks, each with the same number of micro-batches."""
        settings = self.config.data
        batches = eval_batches(
            data,
            micro_batch_size=packs_at_once(self.config.train),
            max_length=settings.max_length,
            packing=is_packed(settings),
            pad_id=self.pad_id,
            pad_multiple=self.multiple,
            shape=self.shape,
            with_buckets=self.with_buckets,
            world_size=self.world_size,
            rank=self.rank,
            parts=self.parts,
        )
        return (batch.to(self.device) for batch in batches)
