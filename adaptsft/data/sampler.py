"""Which examples make up a step, and which rank sees them in which micro-batch: a pure function of
(seed, step).

There is no iterator whose state a checkpoint would have to hold. The examples of a step depend on
nothing but data, weights, seed and train.global_batch_size: not on the number of ranks, the
micro-batch or packing. To resume is to ask the sampler for the next step.
"""

import hashlib
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from adaptsft.config.schema import Config, packs_at_once
from adaptsft.data.packing import MicroBatch, Pack, assign_to_ranks, pack_examples
from adaptsft.data.shards import Shard
from adaptsft.data.tokenized import TokenizedData
from adaptsft.errors import ConfigError


class BatchSampler:
    """Epoch e is a permutation of its examples, seeded by (seed, e); step t (0-based) takes the
    examples [t G, (t+1) G) of the epochs concatenated, G = train.global_batch_size.

    A source of weight w has floor(w) copies of each example in an epoch, and a random share
    w - floor(w) of them once more, another share each epoch.

    Shard n of a stream is one such epoch, of number n, with steps [first, end); those of its
    examples that fill no step are left out.
    """

    def __init__(
        self, data: TokenizedData, config: Config, world_size: int, shard: Shard | None = None
    ) -> None:
        """Raises ConfigError where an epoch would have no example of a source."""
        self.data, self.seed, self.world_size, self.shard = data, config.seed, world_size, shard
        self.global_batch_size = config.train.global_batch_size
        self.train = config.train
        self.capacity = config.data.max_length if config.data.packing else 0
        self.as_drawn = config.train.loss_reduction == "micro_batch"
        if self.as_drawn and self.global_batch_size % (world_size * packs_at_once(self.train)):
            raise ConfigError(
                "train.loss_reduction=micro_batch: train.global_batch_size="
                f"{self.global_batch_size} is no multiple of {world_size} ranks x "
                f"train.micro_batch_size={packs_at_once(self.train)}, and the examples of a "
                "smaller micro-batch would weigh more; choose sizes that divide"
            )
        self.sources = []  # (examples, whole copies, examples of the partial copy) of each source
        for number, (name, weight) in enumerate(zip(data.names, data.weights, strict=True)):
            members = np.flatnonzero(data.source == number)
            copies = int(weight)
            partial = round((weight - copies) * len(members))
            if copies * len(members) + partial == 0:
                raise ConfigError(
                    f"data.sources[{number}] ({name}): weight {weight:g} of {len(members)} "
                    "examples leaves no example in an epoch; raise the weight"
                )
            self.sources.append((members, copies, partial))
        self.epoch_size = sum(
            copies * len(members) + partial for members, copies, partial in self.sources
        )
        self.first = shard.first if shard else 0
        self.end = shard.first + self.epoch_size // self.global_batch_size if shard else sys.maxsize
        if shard and self.end == self.first:
            raise ConfigError(
                f"data.stream={config.data.stream}: a shard of the stream "
                f"({', '.join(shard.files[:2])} …) holds {self.epoch_size} examples, less than one "
                f"step of train.global_batch_size={self.global_batch_size}: raise data.stream"
            )
        # a step reads one epoch, or two where one ends within it
        self._epoch = lru_cache(maxsize=2)(self._epoch_order)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        number = epoch + (self.shard.number if self.shard else 0)
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, number])))
        chosen = []
        for members, copies, partial in self.sources:
            chosen += [members] * copies + [random.permutation(members)[:partial]]
        return random.permutation(np.concatenate(chosen))

    def examples(self, step: int) -> np.ndarray:
        """int64 [G], the examples of a step."""
        place, pieces = (step - self.first) * self.global_batch_size, []
        end = place + self.global_batch_size
        while place < end:
            epoch, begin = divmod(place, self.epoch_size)
            pieces.append(self._epoch(epoch)[begin : begin + end - place])
            place += len(pieces[-1])
        return np.concatenate(pieces)

    def target_tokens(self, step: int) -> int:
        """Of a step over all ranks and micro-batches: what its loss is divided by."""
        return int(self.data.target_tokens[self.examples(step)].sum())

    def weight_scale(self, step: int) -> float:
        """What the weights of the step's target tokens are multiplied by: on average they are then
        1, so that the loss divided by the number of tokens is a weighted mean."""
        return self.target_tokens(step) / float(self.data.target_weight[self.examples(step)].sum())

    def tokens(self, step: int) -> int:
        """Tokens of a step, without padding."""
        return int(self.data.lengths[self.examples(step)].sum())

    def packs(self, step: int) -> list[Pack]:
        """The packs of a step over all ranks; without data.packing one example each."""
        return pack_examples(self.examples(step), self.data.lengths, self.capacity)

    def most_packs(self, steps: int) -> int:
        """Packs of the largest step, over all ranks: those of the first 50, and a tenth for the
        others. Of a stream, whose next shards are not known, one per example."""
        if self.shard is not None or self.capacity == 0:
            return self.global_batch_size
        found = max(len(self.packs(step)) for step in range(min(steps, 50)))
        return min(found + -(-found // 10), self.global_batch_size)

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """What the rank computes in a step. Every rank has the same number of micro-batches.

        Where each micro-batch is averaged on its own (train.loss_reduction=micro_batch), it matters
        which examples share one: the ranks take the examples in turn, as drawn, like torch's
        DistributedSampler. By length, short examples would weigh more.
        """
        size = packs_at_once(self.train)
        if self.as_drawn:
            packs = [[int(example)] for example in self.examples(step)[rank :: self.world_size]]
            return [packs[i : i + size] for i in range(0, len(packs), size)]
        return assign_to_ranks(self.packs(step), self.data.lengths, self.world_size, size)[rank]

    def steps(self, epochs: float) -> int:
        """Steps in which all examples of so many epochs are seen. Every step is whole: the last one
        goes on into the next epoch."""
        return max(1, -(-round(epochs * self.epoch_size) // self.global_batch_size))

    def epoch(self, step: int) -> float:
        """Epochs (of a stream: passes over its files) seen before a step."""
        epochs = (step - self.first) * self.global_batch_size / self.epoch_size
        return epochs if self.shard is None else (self.shard.number + epochs) / self.shard.per_pass

    def extent(self, steps: int) -> str:
        """How much of the data so many steps see; of a stream an estimate from this shard."""
        if self.shard is None:
            return f"{self.epoch(steps):.2f} epochs of {self.epoch_size:,}"
        return (
            f"about {self.epoch(steps):.2f} passes of {self.shard.per_pass} shards; this shard has "
            f"{self.epoch_size:,} examples"
        )

    def where(self, step: int) -> list[str]:
        """Where the examples of a step come from, as file:line."""
        return [self.data.where(int(example)) for example in self.examples(step)]

    def position(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` steps holds of the data: a fingerprint of it and, of a
        stream, the shard that continues. Also the number of ranks, where that changes what is
        learned.

        The number of the shard is called `part` there: runs that were begun when shards were called
        so must resume.
        """
        return self._position(step) | ({"ranks": self.world_size} if self.as_drawn else {})

    def _position(self, step: int) -> dict[str, Any]:
        if self.shard is None:
            return {"fingerprint": self.data.fingerprint}
        number, listing = self.shard.number, self.shard.listing
        # of a shard that has not begun only the files are known
        if step in (self.first, self.end):
            return {"part": number + (step == self.end), "first": step, "fingerprint": listing}
        known = hashlib.sha256((listing + self.data.fingerprint).encode()).hexdigest()
        return {"part": number, "first": self.first, "fingerprint": known}
