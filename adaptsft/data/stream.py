"""Training on a set larger than the disk: while the run trains on one shard of its files, a process
beside it tokenises the next.

Rank 0 manages the folder of the shards. It holds two at most: the shard before is deleted when all
ranks have opened the next one, and only then is the one after that begun, so the space is bounded
whatever happens. The price: a run that resumes from a checkpoint in a shard that has been deleted
tokenises that shard again.
"""

import multiprocessing
import os
import shutil
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from adaptsft.config.schema import Config
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.shards import Shard, cache_name, folder_of, list_files, make_shard
from adaptsft.data.tokenized import TokenizedData, open_data
from adaptsft.distributed.ranks import print0, raise_on_all_ranks, rank, rank0_first
from adaptsft.distributed.watchdog import Watchdog
from adaptsft.errors import DataError, UserError

ASK_EVERY = 5.0  # seconds
PROGRESS = "progress"  # file in a shard's folder: the newest line of its tokenising


class Stream:
    """The shards of a stream, from that of the checkpoint on whose `numbers` are given. All ranks
    make one and call it together."""

    def __init__(self, config: Config, tokenizer: Any, numbers: dict[str, Any]) -> None:
        self.config, self.tokenizer = config, tokenizer
        # rank 0 alone lists the files: thousands of ranks need not ask a server
        files = [raise_on_all_ranks(lambda: list_files(config.data) if rank() == 0 else [])]
        dist.broadcast_object_list(files)
        self.files = files[0]
        # `part` is the number of the shard, see BatchSampler.position
        self.shard = make_shard(config, self.files, numbers.get("part", 0), numbers.get("first", 0))
        self.tokeniser: Tokeniser | None = None
        self.begun = -1  # number of the shard last begun
        if rank() == 0:
            _delete_all_but(folder_of(config), [self.shard.number, self.shard.number + 1])

    def close(self) -> None:
        if self.tokeniser is not None:
            self.tokeniser.process.kill()
            self.tokeniser.process.join()

    def sampler_of(self, step: int, sampler: BatchSampler, watchdog: Watchdog) -> BatchSampler:
        """The sampler that holds the step: `sampler`, the one so far, or the next shard's where
        that has come to its end. Raises DataError."""
        if step == sampler.end:
            self.shard = make_shard(self.config, self.files, self.shard.number + 1, step)
            self._wait(step, watchdog)
            data = rank0_first(self._open)
            sampler.data.close()
            sampler = BatchSampler(data, self.config, sampler.world_size, self.shard)
            if rank() == 0:
                _delete_all_but(folder_of(self.config), [self.shard.number])
        if self.begun != self.shard.number:
            self.begun = self.shard.number
            self._begin(sampler)
        return sampler

    def _begin(self, sampler: BatchSampler) -> None:
        """Print what a shard holds, and have the next one tokenised if the run needs it."""
        lost = sampler.epoch_size - (sampler.end - sampler.first) * sampler.global_batch_size
        print0(
            f"shard {self.shard.number + 1} of the stream: steps {sampler.first + 1:,} to "
            f"{sampler.end:,}; {lost:,} of its {sampler.epoch_size:,} examples are left over at "
            "its end, too few for a step, and not seen in this pass"
        )
        if rank() == 0 and sampler.end < self.config.train.max_steps:
            self.tokeniser = self.tokeniser or Tokeniser(self.config, self.tokenizer)
            shard = make_shard(self.config, self.files, self.shard.number + 1, sampler.end)
            (shard.cache / PROGRESS).unlink(missing_ok=True)  # of an earlier process
            with suppress(ConnectionError):  # it has died: `result` raises the reason
                self.tokeniser.jobs.send(shard)

    def _open(self) -> TokenizedData:
        if self.tokeniser is not None:
            self.tokeniser.result()
        config = replace(self.config.data, validation_path="")  # the held-out data is open already
        verify = rank() == 0
        data, _ = open_data(
            config, self.tokenizer, self.config.seed, print0, verify, shard=self.shard
        )
        return data

    def _wait(self, step: int, watchdog: Watchdog) -> None:
        """Until rank 0's tokeniser has done this shard. A tokeniser that makes no progress does not
        keep the watchdog from ending the run."""
        news, shown = torch.ones((), dtype=torch.int64), ""
        while news < 2:
            if self.tokeniser is not None:
                ready, line = self.tokeniser.jobs.poll(ASK_EVERY), _noted(self.shard)
                news.fill_(2 if ready else int(line != shown))
                if not ready:
                    print0(
                        f"waiting for shard {self.shard.number + 1} of the stream: "
                        f"{line or 'its process is starting'}"
                    )
                shown = line
            dist.broadcast(news, 0)
            if news > 0:
                watchdog.beat(step + 1)


class Tokeniser:
    """A process that tokenises the shards sent to it. It exits when this one
    does, for any reason."""

    def __init__(self, config: Config, tokenizer: Any) -> None:
        # not a fork, which would copy threads' locks and the CUDA context
        context = multiprocessing.get_context("spawn")
        self.jobs, theirs = context.Pipe()
        settings = replace(config.data, validation_path="")
        self.process = context.Process(
            target=_tokenise_shards, args=(theirs, settings, tokenizer, config.seed), daemon=True
        )
        self.process.start()
        theirs.close()

    def result(self) -> None:
        """Take the answer to what was sent, waiting for it. Raises what the tokenising raised."""
        try:
            error = self.jobs.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            hint = ": out of memory? Lower data.stream" if code == -signal.SIGKILL else ""
            raise DataError(
                f"the process that tokenises the stream ended with code {code}{hint}"
            ) from None
        if error is not None:
            raise error


def _tokenise_shards(jobs: Connection, config: Any, tokenizer: Any, seed: int) -> None:
    # a terminal or SLURM sends these to all processes; the run decides what they mean
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError):  # the run is over
        while True:
            shard: Shard = jobs.recv()
            error: UserError | None = None
            try:
                shard.cache.mkdir(parents=True, exist_ok=True)
                open_data(config, tokenizer, seed, partial(_note, shard), verify=False, shard=shard)
            except UserError as caught:
                error = caught
            except OSError as caught:
                error = DataError(f"{shard.cache}: cannot be written: {caught}")
            jobs.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _note(shard: Shard, line: str) -> None:
    (shard.cache / PROGRESS).write_text(line)


def _noted(shard: Shard) -> str:
    try:
        return (shard.cache / PROGRESS).read_text()
    except OSError:  # nothing yet
        return ""


def _delete_all_but(folder: Path, numbers: list[int]) -> None:
    """Delete the shards of other numbers, and in those that stay what a killed process has left
    half made."""
    keep = [cache_name(number) for number in numbers]
    for path in folder.glob("part_*"):
        for gone in path.glob("*.*") if path.name in keep else [path]:
            if gone.is_dir():
                # what cannot be deleted now is tried again with the next shard
                shutil.rmtree(gone, ignore_errors=True)
            else:
                gone.unlink(missing_ok=True)
