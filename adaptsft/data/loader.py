"""Batches on the device: the next step's are prepared by one background thread while the current step runs."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from adaptsft.config.schema import Config
from adaptsft.data.cache import TokenizedData
from adaptsft.data.collator import Batch, collate, eval_batches
from adaptsft.data.documents import Documents
from adaptsft.data.sampler import BatchSampler
from adaptsft.distributed.ranks import rank, world_size
from adaptsft.statistics.base_model import BaseLogProbabilities

MicroBatches = list[tuple[Batch, Documents]]


class BatchLoader:
    """`loader(step)` gives this rank's micro-batches of an optimizer step, with the base model's log p of their tokens if `base` is given.

    It has no state: the plan is a pure function of the step.
    """

    def __init__(
        self,
        plan: BatchSampler,
        config: Config,
        pad_id: int,
        buckets: bool,
        device: torch.device,
        base: BaseLogProbabilities | None = None,
    ):
        self.plan, self.config, self.pad_id, self.buckets, self.device = (
            plan,
            config,
            pad_id,
            buckets,
            device,
        )
        self.base_logp = base.of if base is not None else None
        self.pool = ThreadPoolExecutor(1)
        self.ahead: dict[int, Future[MicroBatches]] = {}

    def __call__(self, step: int, prefetch: bool = False) -> MicroBatches:
        ready = self.ahead.pop(step, None)
        if prefetch:
            self.ahead[step + 1] = self.pool.submit(self._load, step + 1)
        return ready.result() if ready is not None else self._load(step)

    def _load(self, step: int) -> MicroBatches:
        pad, data = self.config.data.pad_multiple, self.plan.data
        micro_batches = self.plan.micro_batches(step, rank())
        collated = (
            collate(rows, data, pad_id=self.pad_id, pad_multiple=pad, base_logp=self.base_logp)
            for rows in micro_batches
        )
        return [self._place(batch) for batch in collated]

    def _place(self, batch: Batch) -> tuple[Batch, Documents]:
        documents = Documents.build(batch.cu_seqlens, batch.ids.shape[1], self.device, self.buckets)
        return batch.to(self.device, non_blocking=True), documents

    def in_order(self, data: TokenizedData) -> Iterator[tuple[Batch, Documents]]:
        """All of `data` once, dealt over the ranks; every rank gets the same number of micro-batches."""
        settings = self.config.data
        batches = eval_batches(
            data,
            micro_batch_size=self.config.train.micro_batch_size,
            max_length=settings.max_length,
            packing=settings.packing,
            pad_id=self.pad_id,
            pad_multiple=settings.pad_multiple,
            world_size=world_size(),
            rank=rank(),
        )
        return map(self._place, batches)
