"""The tokenised examples of a run's sources: their lengths, sources and tokens, and where each one
comes from.

Tokens lie in the cache, a folder per file (see `cache`). The length limit, the weights and the
held-out split do not change tokens: they are applied here, on opening.
"""

import hashlib
from bisect import bisect_right
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from adaptsft.config.schema import DataConfig, SourceConfig
from adaptsft.data.cache import Log, TokenFile, throttled, tokenize_once
from adaptsft.data.files import files_of, is_remote, training_sources, validation_source
from adaptsft.data.ids import check_ids_of_files, ids_are_mapped, warn_of_repeated_ids
from adaptsft.data.remote import fetched
from adaptsft.data.shards import Shard
from adaptsft.data.template import Template
from adaptsft.errors import ConfigError, DataError


@dataclass(frozen=True)
class TokenizedData:
    """N examples of one or more sources, each cut to data.max_length if it is to be."""

    names: list[str]  # of the sources
    weights: list[float]  # of the sources, copies per epoch
    lengths: np.ndarray  # int32 [N], tokens
    target_tokens: np.ndarray  # int32 [N], tokens that the loss is taken over; at least 1
    target_weight: np.ndarray  # float64 [N], sum of their weights
    source: np.ndarray  # int16 [N]
    number: np.ndarray  # int64 [N], number of the example in all files concatenated
    files: list[TokenFile]  # of all sources, in their order
    # per source, examples longer than data.max_length, or without a target token once truncated
    dropped: list[int]
    truncated: list[int]  # per source
    skipped: list[str]  # file:line and why, of records that data.on_bad_record=skip left out

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64 [L], mask bool [L]); the mask marks the target tokens, never the first one."""
        file, number = self._locate(i)
        ids, mask = file.read(number, int(self.lengths[i]))
        return ids.astype(np.int64), mask

    def weights_of(self, i: int) -> np.ndarray | None:
        """The weight of each token in the loss, float32 [L]; None where every target token has the
        weight 1."""
        file, number = self._locate(i)
        return file.read_weights(number, int(self.lengths[i]))

    @property
    def highest_id(self) -> int:
        """Of the tokens of all files."""
        return max(file.facts.highest_id for file in self.files)

    @cached_property
    def is_weighted(self) -> bool:
        """Whether the target tokens of some example have other weights than 1."""
        return bool((self.target_weight != self.target_tokens).any())

    def where(self, i: int) -> str:
        """Where the example comes from, as file:line."""
        file, number = self._locate(i)
        return file.where(number)

    def place(self, i: int) -> tuple[str, int]:
        """Where the example comes from: its file, and the line, item or row there."""
        file, number = self._locate(i)
        return file.name, int(file.places[number])

    @cached_property
    def _ends(self) -> list[int]:
        """Of each file, the number after that of its last example."""
        return list(accumulate(len(file) for file in self.files))

    def _locate(self, i: int) -> tuple[TokenFile, int]:
        """The file of an example, and its number there."""
        number = int(self.number[i])
        file = bisect_right(self._ends, number)
        return self.files[file], number - (self._ends[file - 1] if file else 0)

    @property
    def fingerprint(self) -> str:
        """Of the tokens of all examples and their order."""
        digest = hashlib.sha256("".join(file.fingerprint for file in self.files).encode())
        for array in (self.source, self.number, self.lengths):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def target_tokens_per_epoch(self) -> np.ndarray:
        """Of every source, copies by weight included: float64 [sources]."""
        tokens = np.bincount(self.source, self.target_tokens, minlength=len(self.names))
        return tokens * np.array(self.weights)

    def take(self, examples: np.ndarray) -> "TokenizedData":
        """These examples only."""
        names = ("lengths", "target_tokens", "target_weight", "source", "number")
        return replace(self, **{name: getattr(self, name)[examples] for name in names})

    def hold_out(self, count: int, seed: int) -> tuple["TokenizedData", "TokenizedData"]:
        """(the rest, `count` examples drawn by seed), both with these sources. Raises ConfigError
        where nothing would be left to train on."""
        if count >= len(self):
            raise ConfigError(
                f"data.validation_examples={count}: there are only {len(self)} examples, and some "
                "must be left to train on"
            )
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        order = random.permutation(len(self))
        zeros = [0] * len(self.names)
        held_out = self.take(np.sort(order[:count]))
        held_out = replace(held_out, dropped=zeros, truncated=zeros, skipped=[])
        return self.take(np.sort(order[count:])), held_out

    def close(self) -> None:
        """Unmap the tokens, whose files have been deleted: mapped, they would keep their space on
        the disk."""
        for file in self.files:
            file.close()

    def summary(self) -> str:
        """A line per source: examples, tokens, and what was dropped or truncated."""
        lines = []
        for number, name in enumerate(self.names):
            of = self.source == number
            tokens, targets = (
                int(sizes[of].sum(dtype=np.int64)) for sizes in (self.lengths, self.target_tokens)
            )
            line = f"{name}: {of.sum():,} examples, {tokens:,} tokens, {targets:,} target tokens"
            if dropped := self.dropped[number]:
                line += f", {dropped:,} examples dropped as too long"
            if truncated := self.truncated[number]:
                line += f", {truncated:,} examples truncated"
            if (weight := self.weights[number]) != 1:
                line += f", weight {weight:g}"
            lines.append(line)
        return "\n".join(lines)


def open_data(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    log: Log = print,
    verify: bool = True,
    shard: Shard | None = None,
) -> tuple[TokenizedData, TokenizedData | None]:
    """The training data, and the held-out data if there is any.

    The first call tokenises, which is for one process to do; the next ones, of other processes or
    later runs, read the cache. Summaries and progress go to `log`, a line at a time. `verify` reads
    the cache once to compare its checksums, and compares the ids of a source's records; of the
    ranks of a run one is enough. Of a stream, the training data is `shard`.

    Held-out examples keep the source of the training data they are taken from; data.validation_path
    is a source of its own, the only one of the held-out data, and read with the field map of the
    first training source. Raises ConfigError and DataError.
    """
    sources = training_sources(config)
    cache = Path(config.cache_dir).expanduser()
    if shard is None:
        files = [files_of(source) for source in sources]
        train = _open(sources, files, tokenizer, config, cache, log, verify)
    else:
        train = _open(sources, [shard.files], tokenizer, config, shard.cache, log, verify)
    held_out = None
    if config.validation_path:
        source = validation_source(config)
        held_out = _open([source], [files_of(source)], tokenizer, config, cache, log, verify)
    elif config.validation_examples:
        train, held_out = train.hold_out(config.validation_examples, seed)
    for label, data in (("train", train), ("held out", held_out)):
        for line in data.summary().splitlines() if data else []:
            log(f"{label}: {line}")
    return train, held_out


def _open(
    sources: list[SourceConfig],
    paths_of: list[list[str]],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    cache: Path,
    log: Log,
    verify: bool,
) -> TokenizedData:
    """All examples of the sources within the length limit; `paths_of` are the files of each."""
    files: list[TokenFile] = []
    skipped: list[str] = []
    counts: list[int] = []
    progress = throttled(log)
    for source, paths in zip(sources, paths_of, strict=True):
        own: list[TokenFile] = []
        template = Template(tokenizer, replace(config, loss_on=source.loss_on or config.loss_on))
        for number, path in enumerate(paths, 1):
            name = source.name + (f", file {number} of {len(paths)}" if len(paths) > 1 else "")
            one = replace(source, path=path, name=name)
            with fetched(path, cache, log) if is_remote(path) else nullcontext():
                own.append(tokenize_once(one, template, cache, progress, verify))
            # after 2, 4, 8 … files too: ids that restart in each file are found before all of
            # them are tokenised, for the price of one more sort
            compare = number & (number - 1) == 0 or number == len(paths)
            if verify and ids_are_mapped(source) and number > 1 and compare:
                check_ids_of_files(source, paths[:number], own, cache)
        if verify and not ids_are_mapped(source):
            warn_of_repeated_ids(source, own, log)
        unread = dict.fromkeys(column for file in own for column in file.facts.unread)
        if unread:
            log(f"{source.name}: columns that nothing reads: {', '.join(unread)}")
        lost: Counter[str] = Counter()
        for file in own:
            lost.update(file.facts.lost)
        if lost:
            fields = ", ".join(f"{name} in {count:,} examples" for name, count in lost.items())
            log(f"{source.name}: the template does not show {fields} (data.lost_text=allow)")
        if bad := [line for file in own for line in file.skipped]:
            log(f"{source.name}: {len(bad):,} bad records skipped, the first: {bad[0]}")
        skipped += bad
        files += own
        counts.append(sum(map(len, own)))
    data = TokenizedData(
        names=[source.name for source in sources],
        weights=[source.weight for source in sources],
        lengths=np.concatenate([file.lengths for file in files]),
        target_tokens=np.concatenate([file.target_tokens for file in files]),
        target_weight=np.concatenate([file.target_weight for file in files]),
        source=np.repeat(np.arange(len(sources), dtype=np.int16), counts),
        number=np.arange(sum(counts)),
        files=files,
        dropped=[],
        truncated=[],
        skipped=skipped,
    )
    return _limit(data, sources, config)


def _limit(data: TokenizedData, sources: list[SourceConfig], config: DataConfig) -> TokenizedData:
    """The examples that data.max_length leaves, cut to it if data.overlong says so."""
    long = data.lengths > config.max_length
    if long.any() and config.overlong == "error":
        first = int(np.argmax(long))
        same_source = (long & (data.source == data.source[first])).sum()
        raise DataError(
            f"{data.where(first)}: the example has {data.lengths[first]} tokens, more than "
            f"data.max_length={config.max_length} (so have {same_source} examples of this source); "
            "raise it, or choose data.overlong=drop or truncate"
        )
    if config.overlong == "truncate":
        data.lengths[long] = config.max_length
        for i in np.flatnonzero(long).tolist():
            mask, weights = data.example(i)[1], data.weights_of(i)
            data.target_tokens[i] = mask.sum()
            data.target_weight[i] = mask.sum() if weights is None else weights.sum(dtype=np.float64)
    keep = (data.lengths <= config.max_length) & (data.target_tokens > 0)
    total, kept, truncated = (
        np.bincount(data.source[of], minlength=len(sources))
        for of in (slice(None), keep, keep & long)
    )
    for source, examples in zip(sources, np.where(kept == 0, total, 0), strict=True):
        if examples:
            why = "are longer than"
            if config.overlong == "truncate":
                why = "have a prompt that alone fills"
            raise DataError(
                f"{source.path}: no example is left: all {examples} {why} "
                f"data.max_length={config.max_length}, with data.overlong={config.overlong}; raise "
                "data.max_length"
            )
    kept_data = data.take(np.flatnonzero(keep))
    return replace(kept_data, dropped=(total - kept).tolist(), truncated=truncated.tolist())
