"""Which examples make up a step, and which rank sees them in which micro-batch: a pure function of (seed, step).

There is no iterator whose state a checkpoint would have to hold. The examples of a step depend on nothing but data, weights, seed and
train.global_batch_size: not on the number of ranks, the micro-batch or packing. Resuming is calling the plan with the next step.
"""

import hashlib
import heapq
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from adaptsft.config.schema import Config
from adaptsft.data.cache import TokenizedData
from adaptsft.data.packing import best_fit_decreasing
from adaptsft.data.shards import Shard
from adaptsft.errors import ConfigError

Row = list[int]  # examples that share a row
MicroBatch = list[Row]  # rows of one forward on one rank; none where the rank has nothing to do


class BatchSampler:
    """Epoch e is a permutation of its examples, seeded by (seed, e); step t (0-based) takes examples [t G, (t+1) G) of the epochs
    laid end to end, G = train.global_batch_size. A source of weight w has floor(w) copies of each example in an epoch, and a random share
    w - floor(w) of them once more, another share each epoch. Raises ConfigError where a source has no example in an epoch.

    Shard n of a stream is one such epoch, of number n, with steps [first, end); those of its examples that fill no step are left out.
    """

    def __init__(
        self, data: TokenizedData, config: Config, world_size: int, shard: Shard | None = None
    ) -> None:
        self.data, self.seed, self.world_size, self.shard = data, config.seed, world_size, shard
        self.global_batch_size, self.micro_batch_size = (
            config.train.global_batch_size,
            config.train.micro_batch_size,
        )
        self.capacity = config.data.max_length if config.data.packing else 0
        self.as_drawn = config.train.loss_reduction == "micro_batch"
        if self.as_drawn and self.global_batch_size % (world_size * self.micro_batch_size):
            raise ConfigError(
                f"train.loss_reduction=micro_batch: train.global_batch_size={self.global_batch_size} is no multiple of "
                f"{world_size} ranks x train.micro_batch_size={self.micro_batch_size}, and the examples of a smaller micro-batch would "
                "weigh more; choose sizes that divide"
            )
        self.sources = []  # (examples, whole copies, examples of the partial copy) of each source
        for number, (name, weight) in enumerate(zip(data.names, data.weights, strict=True)):
            members = np.flatnonzero(data.source == number)
            copies = int(weight)
            partial = round((weight - copies) * len(members))
            if copies * len(members) + partial == 0:
                raise ConfigError(
                    f"data.sources[{number}] ({name}): weight {weight:g} of {len(members)} examples is none in an epoch; raise the weight"
                )
            self.sources.append((members, copies, partial))
        self.epoch_size = sum(
            copies * len(members) + partial for members, copies, partial in self.sources
        )
        self.first = shard.first if shard else 0
        self.end = shard.first + self.epoch_size // self.global_batch_size if shard else sys.maxsize
        if shard and self.end == self.first:
            raise ConfigError(
                f"data.stream={config.data.stream}: a shard of the stream ({', '.join(shard.files[:2])} …) holds {self.epoch_size} examples, "
                f"less than one step of train.global_batch_size={self.global_batch_size}: raise data.stream"
            )
        # a step reads one epoch, or two where one ends within it
        self._epoch = lru_cache(maxsize=2)(self._epoch_order)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        random = np.random.Generator(
            np.random.PCG64(
                np.random.SeedSequence(
                    [self.seed, epoch + (self.shard.number if self.shard else 0)]
                )
            )
        )
        parts = []
        for members, copies, partial in self.sources:
            parts += [members] * copies + [random.permutation(members)[:partial]]
        return random.permutation(np.concatenate(parts))

    def examples(self, step: int) -> np.ndarray:
        """int64 [G], the examples of a step."""
        place, parts = (step - self.first) * self.global_batch_size, []
        end = place + self.global_batch_size
        while place < end:
            epoch, begin = divmod(place, self.epoch_size)
            parts.append(self._epoch(epoch)[begin : begin + end - place])
            place += len(parts[-1])
        return np.concatenate(parts)

    def target_tokens(self, step: int) -> int:
        """Supervised tokens of a step over all ranks and micro-batches: what its loss is divided by."""
        return int(self.data.target_tokens[self.examples(step)].sum())

    def tokens(self, step: int) -> int:
        """Tokens of a step, without padding."""
        return int(self.data.lengths[self.examples(step)].sum())

    def rows(self, step: int) -> list[Row]:
        """The examples of a step in rows: packs, or one example each."""
        return pack_examples(self.examples(step), self.data.lengths, self.capacity)

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """What the rank computes in a step. Every rank has the same number of micro-batches.

        Where each micro-batch is averaged on its own (train.loss_reduction=micro_batch), who shares one with whom matters: the
        ranks take the examples in turn, as drawn, as torch's DistributedSampler deals them. By length, short examples would weigh more.
        """
        if self.as_drawn:
            rows = [[int(example)] for example in self.examples(step)[rank :: self.world_size]]
            return [
                rows[i : i + self.micro_batch_size]
                for i in range(0, len(rows), self.micro_batch_size)
            ]
        return assign_to_ranks(
            self.rows(step), self.data.lengths, self.world_size, self.micro_batch_size
        )[rank]

    def steps(self, epochs: float) -> int:
        """Whole steps in so many epochs. Raises ConfigError where there is not even one."""
        examples = round(epochs * self.epoch_size)
        if examples < self.global_batch_size:
            raise ConfigError(
                f"train.epochs={epochs} of {self.epoch_size} examples is less than one step of train.global_batch_size="
                f"{self.global_batch_size} examples; lower train.global_batch_size, raise train.epochs or set train.max_steps"
            )
        return examples // self.global_batch_size

    def epoch(self, step: int) -> float:
        """Epochs (of a stream: passes over its files) seen before a step."""
        epochs = (step - self.first) * self.global_batch_size / self.epoch_size
        return epochs if self.shard is None else (self.shard.number + epochs) / self.shard.per_pass

    def extent(self, steps: int) -> str:
        """How much of the data so many steps see; of a stream an estimate from this shard."""
        if self.shard is None:
            return f"{self.epoch(steps):.2f} epochs of {self.epoch_size:,}"
        return f"about {self.epoch(steps):.2f} passes of {self.shard.per_pass} shards; this shard has {self.epoch_size:,} examples"

    def where(self, step: int) -> list[str]:
        """Where the examples of a step come from, as file:line."""
        return [self.data.where(int(example)) for example in self.examples(step)]

    def position(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` steps holds of the data: a fingerprint of it and, of a stream, the shard that goes on. Also
        the number of ranks, where that changes what is learned."""
        return self._place(step) | ({"ranks": self.world_size} if self.as_drawn else {})

    def _place(self, step: int) -> dict[str, Any]:
        if self.shard is None:
            return {"fingerprint": self.data.fingerprint}
        if step in (self.first, self.end):  # of a shard that has not begun only the files are known
            return {
                "part": self.shard.number + (step == self.end),
                "first": step,
                "fingerprint": self.shard.listing,
            }
        known = self.shard.listing + self.data.fingerprint
        return {
            "part": self.shard.number,
            "first": self.first,
            "fingerprint": hashlib.sha256(known.encode()).hexdigest(),
        }


def pack_examples(examples: np.ndarray, lengths: np.ndarray, capacity: int) -> list[Row]:
    """Packs of at most `capacity` tokens; with capacity 0 one example per row, longest first, so that neighbours need little padding."""
    sizes = lengths[examples].tolist()
    if capacity == 0:
        return [[int(examples[i])] for i in sorted(range(len(sizes)), key=lambda i: -sizes[i])]
    return [[int(examples[i]) for i in row] for row in best_fit_decreasing(sizes, capacity)]


def assign_to_ranks(
    rows: list[Row], lengths: np.ndarray, world_size: int, micro_batch_size: int
) -> list[list[MicroBatch]]:
    """[rank][micro-batch] -> rows. Each row, longest first, goes to the rank with the fewest tokens so far; all ranks get the same number
    of micro-batches, as few as hold the rows, since collectives run in each of them."""
    tokens = [sum(int(lengths[i]) for i in row) for row in rows]
    count = max(1, -(-len(rows) // (world_size * micro_batch_size)))
    hands: list[list[Row]] = [[] for _ in range(world_size)]
    load = [(0, rank) for rank in range(world_size)]  # a heap
    for row in sorted(range(len(rows)), key=lambda i: -tokens[i]):
        held, rank = heapq.heappop(load)
        hands[rank].append(rows[row])
        if len(hands[rank]) < count * micro_batch_size:
            heapq.heappush(load, (held + tokens[row], rank))
    return [
        [hand[m * micro_batch_size : (m + 1) * micro_batch_size] for m in range(count)]
        for hand in hands
    ]
