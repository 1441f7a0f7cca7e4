"""What a run trains on and is evaluated on, opened by all ranks together."""

from pathlib import Path
from typing import Any

from adaptsft.config.schema import Config
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.stream import Stream
from adaptsft.data.tokenized import TokenizedData, open_data
from adaptsft.distributed.checkpoint import read_run_state
from adaptsft.distributed.ranks import data_ranks, print0, rank, rank0_first
from adaptsft.distributed.watchdog import Watchdog


class TrainingData:
    """The tokenised training data with the sampler of its batches, and the held-out data.

    Of a stream, `train` and `sampler` are those of the shard in which the run is. A context
    manager. `steps` is the number of optimizer steps of the whole run, `names` are the sources.
    """

    def __init__(self, config: Config, tokenizer: Any, checkpoint: Path | None) -> None:
        """Tokenises what is not in the cache. Raises DataError and ConfigError on all ranks."""
        numbers = {} if checkpoint is None else read_run_state(checkpoint)
        self.stream = Stream(config, tokenizer, numbers) if config.data.stream else None
        shard = None if self.stream is None else self.stream.shard
        self.train: TokenizedData
        self.held_out: TokenizedData | None
        self.train, self.held_out = rank0_first(
            lambda: open_data(config.data, tokenizer, config.seed, print0, rank() == 0, shard)
        )
        _, ranks = data_ranks(config.train.context_parallel)
        self.sampler = BatchSampler(self.train, config, ranks, shard)
        self.steps = config.train.max_steps or self.sampler.steps(config.train.epochs)
        self.names = self.train.names

    def __enter__(self) -> "TrainingData":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.stream is not None:
            self.stream.close()

    def advance(self, step: int, watchdog: Watchdog) -> None:
        """Before `step` (0-based): of a stream, open the next shard where one has ended."""
        if self.stream is not None:
            self.sampler = self.stream.sampler_of(step, self.sampler, watchdog)
            self.train = self.sampler.data

    def position(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` steps holds of the data."""
        return self.sampler.position(step)
