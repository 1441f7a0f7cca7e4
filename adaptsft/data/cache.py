"""Tokenised data: every file of a source is tokenised once, to a folder of data.cache_dir that is found again by a fingerprint.

The folder holds tokens.arrow (record batches with the columns input_ids and mask, memory-mapped when read; `datasets.Dataset.from_file`
opens it too), sizes.npy (int64 [4, examples]: tokens, learned tokens, place in the file, digest of the id), and the checksums of both.
The length limit, weights and the held-out split do not change tokens: they are applied on opening.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from adaptsft.config.schema import DataConfig, SourceConfig
from adaptsft.data.ids import check_id, digest, repeated, same_digests
from adaptsft.data.remote import copy_of, fetched, is_remote
from adaptsft.data.shards import Shard
from adaptsft.data.sources import Records, default_name, files_of, open_records, training_sources
from adaptsft.data.template import Layout, Segment, Template
from adaptsft.errors import ConfigError, DataError

CHECKSUMS = "sha256.json"
FORMAT = 3  # of the cache; raise it when files or tokenisation change
BATCH = 1000  # examples per record batch, and per call of the tokenizer
SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "mask": pa.list_(pa.bool_())})
PROGRESS_EVERY = 5.0  # seconds

Log = Callable[[str], None]


@dataclass(frozen=True)
class TokenizedData:
    """N examples of one or more sources, each cut to data.max_length if it is to be."""

    names: list[str]  # of the sources
    weights: list[float]  # of the sources, copies per epoch
    lengths: np.ndarray  # int32 [N], tokens
    target_tokens: np.ndarray  # int32 [N], tokens that are learned; at least 1
    source: np.ndarray  # int16 [N]
    row: np.ndarray  # int64 [N], place of the example in all files laid end to end
    files: list["TokenFile"]  # of all sources, in their order
    dropped: list[
        int
    ]  # per source, examples longer than data.max_length, or with nothing left to learn after truncation
    truncated: list[int]  # per source

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64 [L], mask bool [L]); the mask marks the tokens that are learned, never the first."""
        file, row = self._locate(i)
        ids, mask = file.read(row, int(self.lengths[i]))
        return ids.astype(np.int64), mask

    def where(self, i: int) -> str:
        """Where the example comes from, as file:line."""
        file, row = self._locate(i)
        return file.where(row)

    @cached_property
    def _ends(self) -> list[int]:
        """The row after the last one of each file."""
        return list(accumulate(len(file.places) for file in self.files))

    def _locate(self, i: int) -> tuple["TokenFile", int]:
        """The file of an example, and its row there."""
        row = int(self.row[i])
        number = bisect_right(self._ends, row)
        return self.files[number], row - (self._ends[number - 1] if number else 0)

    @property
    def fingerprint(self) -> str:
        """Of the tokens of all examples and their order."""
        digest = hashlib.sha256("".join(file.fingerprint for file in self.files).encode())
        for array in (self.source, self.row, self.lengths):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def take(self, examples: np.ndarray) -> "TokenizedData":
        """These examples only."""
        parts = {
            name: getattr(self, name)[examples]
            for name in ("lengths", "target_tokens", "source", "row")
        }
        return replace(self, **parts)

    def hold_out(self, count: int, seed: int) -> tuple["TokenizedData", "TokenizedData"]:
        """(the rest, `count` examples drawn by seed). Raises ConfigError where nothing would be left to train on."""
        if count >= len(self):
            raise ConfigError(
                f"data.validation_examples={count}: there are only {len(self)} examples, and some must be left to train on"
            )
        order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,))).permutation(
            len(self)
        )
        held = replace(
            self.take(np.sort(order[:count])),
            dropped=[0] * len(self.names),
            truncated=[0] * len(self.names),
        )
        return self.take(np.sort(order[count:])), held

    def close(self) -> None:
        """Let go of the tokens, whose files have been deleted: memory-mapped, they would keep their space on the disk."""
        for file in self.files:
            file.ids, file.masks = [], []

    def summary(self) -> str:
        """A line per source: examples, tokens, and what was dropped or truncated."""
        lines = []
        for number, name in enumerate(self.names):
            of = self.source == number
            tokens, target_tokens = (
                int(sizes[of].sum(dtype=np.int64)) for sizes in (self.lengths, self.target_tokens)
            )
            line = f"{name}: {of.sum():,} examples, {tokens:,} tokens, {target_tokens:,} of them learned"
            line += (
                f", {self.dropped[number]:,} examples dropped as too long"
                if self.dropped[number]
                else ""
            )
            line += (
                f", {self.truncated[number]:,} examples truncated" if self.truncated[number] else ""
            )
            lines.append(
                line + (f", weight {self.weights[number]:g}" if self.weights[number] != 1 else "")
            )
        return "\n".join(lines)


class TokenFile:
    """The tokenised examples of one file, memory-mapped."""

    def __init__(self, folder: Path, place: str, verify: bool) -> None:
        self.folder, self.fingerprint, self.place = folder, folder.name, place
        try:
            if verify and json.loads((folder / CHECKSUMS).read_text()) != _checksums(folder):
                raise ValueError("its sha256 is not the one written")
            lengths, target_tokens, self.places, _ = np.load(folder / "sizes.npy")
            table = pa.ipc.open_stream(pa.memory_map(str(folder / "tokens.arrow"))).read_all()
            if len(table) != len(self.places):
                raise pa.ArrowInvalid("record batches are missing")
        except (pa.ArrowInvalid, OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{folder}: the tokenised data is damaged ({error}); delete this folder, and it is made again"
            ) from None
        self.lengths, self.target_tokens, self.places = (
            lengths.astype(np.int32),
            target_tokens.astype(np.int32),
            self.places.copy(),
        )
        self.ids, self.masks = table.column("input_ids").chunks, table.column("mask").chunks

    def read(self, row: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `length` tokens of an example: (ids int32, mask bool)."""
        batch, row = divmod(row, BATCH)
        ids, masks = self.ids[batch], self.masks[batch]
        begin = ids.offsets[row].as_py()
        return ids.values.slice(begin, length).to_numpy(), masks.values.slice(
            begin, length
        ).to_numpy(zero_copy_only=False)

    def where(self, row: int) -> str:
        return f"{self.place}{self.places[row]}"

    def digests(self) -> np.ndarray:
        """int64 [rows], of the ids; not kept in memory."""
        return np.load(self.folder / "sizes.npy", mmap_mode="r")[3]


def open_data(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    log: Log = print,
    verify: bool = True,
    shard: Shard | None = None,
) -> tuple[TokenizedData, TokenizedData | None]:
    """The training data, and the held-out data if there is any. The first call tokenises, which is for one process to do; the next ones,
    of other processes or later runs, read the cache. Summaries and progress go to `log`, a line at a time.

    `verify` reads the cache once to compare its checksums, and compares the ids of a source's files; of the ranks of a run one is enough.
    Of a stream, the training data is `shard`.
    Held-out examples keep the source of the training data they come from; data.validation_path is source 0, and read with the field map
    of the first source. Raises ConfigError and DataError.
    """
    template = Template(tokenizer, config)
    sources = training_sources(config)
    cache = Path(config.cache_dir).expanduser()
    if shard is None:
        train = _open(
            sources, [files_of(source) for source in sources], template, config, cache, log, verify
        )
    else:
        train = _open(sources, [shard.files], template, config, shard.cache, log, verify)
    held_out = None
    if config.validation_path:
        source = SourceConfig(
            default_name(config.validation_path),
            config.validation_path,
            split=config.validation_split,
            fields=sources[0].fields,
        )
        held_out = _open([source], [files_of(source)], template, config, cache, log, verify)
    elif config.validation_examples:
        train, held_out = train.hold_out(config.validation_examples, seed)
    for label, data in (("train", train), ("held out", held_out)):
        for line in data.summary().splitlines() if data else []:
            log(f"{label}: {line}")
    return train, held_out


def _open(
    sources: list[SourceConfig],
    paths_of: list[list[str]],
    template: Template,
    config: DataConfig,
    cache: Path,
    log: Log,
    verify: bool,
) -> TokenizedData:
    files, counts, progress = [], [], _throttled(log)
    for source, paths in zip(sources, paths_of, strict=True):
        for number, path in enumerate(paths, 1):
            name = source.name + (f", file {number} of {len(paths)}" if len(paths) > 1 else "")
            with fetched(path, cache, log) if is_remote(path) else nullcontext():
                files.append(
                    _tokenised(
                        replace(source, path=path, name=name), template, cache, progress, verify
                    )
                )
            # after 2, 4, 8 … files too: ids that repeat by design are told before all is tokenised, for the price of one more sort
            if verify and number > 1 and (number & (number - 1) == 0 or number == len(paths)):
                _compare_ids(source, paths[:number], files[-number:], cache)
        counts.append(sum(len(file.places) for file in files) - sum(counts))
    data = TokenizedData(
        names=[source.name for source in sources],
        weights=[source.weight for source in sources],
        lengths=np.concatenate([file.lengths for file in files]),
        target_tokens=np.concatenate([file.target_tokens for file in files]),
        source=np.repeat(np.arange(len(sources), dtype=np.int16), counts),
        row=np.arange(sum(counts)),
        files=files,
        dropped=[],
        truncated=[],
    )
    return _limit(data, sources, config)


def _compare_ids(
    source: SourceConfig, paths: list[str], files: list[TokenFile], cache: Path
) -> None:
    """Raises DataError where records of two of the files have the same id."""

    def id_at(number: int, row: int) -> Any:
        rows = open_records(replace(source, path=paths[number]), cache).rows()
        return next(record for place, record, _ in rows if place == files[number].places[row])[
            source.fields.get("id", "id")
        ]

    for first, again in same_digests([file.digests() for file in files]):
        value = id_at(*again)
        if value == id_at(*first):
            for number in (first[0], again[0]):  # once mended, a remote file must be fetched again
                if is_remote(paths[number]):
                    copy_of(paths[number], cache).unlink(missing_ok=True)
            raise DataError(
                f"{files[again[0]].where(again[1])}: {repeated(value, files[first[0]].where(first[1]))}"
            )


def _limit(data: TokenizedData, sources: list[SourceConfig], config: DataConfig) -> TokenizedData:
    """The examples that data.max_length leaves, cut to it if data.overlong says so."""
    long = data.lengths > config.max_length
    if long.any() and config.overlong == "error":
        first = int(np.argmax(long))
        raise DataError(
            f"{data.where(first)}: the example has {data.lengths[first]} tokens, more than data.max_length={config.max_length} "
            f"(so have {(long & (data.source == data.source[first])).sum()} examples of this source); raise it, or choose "
            "data.overlong=drop or truncate"
        )
    if config.overlong == "truncate":
        data.lengths[long] = config.max_length
        data.target_tokens[long] = [data.example(i)[1].sum() for i in np.flatnonzero(long).tolist()]
    keep = (data.lengths <= config.max_length) & (data.target_tokens > 0)
    total, kept, truncated = (
        np.bincount(data.source[of], minlength=len(sources))
        for of in (slice(None), keep, keep & long)
    )
    for source, examples in zip(sources, np.where(kept == 0, total, 0), strict=True):
        if examples:
            raise DataError(
                f"{source.path}: no example is left: all {examples} are longer than data.max_length={config.max_length}, with "
                f"data.overlong={config.overlong}; raise data.max_length"
            )
    return replace(
        data.take(np.flatnonzero(keep)),
        dropped=(total - kept).tolist(),
        truncated=truncated.tolist(),
    )


def _throttled(log: Log) -> Log:
    """Of lines that come fast, one every few seconds."""
    shown = time.monotonic()

    def progress(line: str) -> None:
        nonlocal shown
        if time.monotonic() - shown > PROGRESS_EVERY:
            shown = time.monotonic()
            log(line)

    return progress


def _tokenised(
    source: SourceConfig, template: Template, cache: Path, progress: Log, verify: bool
) -> TokenFile:
    """The file's tokens in the cache, made if they are not there: in a folder of its own, then renamed, so that no process sees
    half of it. The source is one file here, or a data set of the hub."""
    records = open_records(source, cache)
    key = json.dumps(
        [FORMAT, records.fingerprint, template.fingerprint, sorted(source.fields.items())]
    )
    final = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not final.is_dir():
        making = cache / f"{final.name}.{uuid.uuid4().hex}"
        try:
            making.mkdir(parents=True)
            _tokenise(source, records, template, making, progress)
            (making / CHECKSUMS).write_text(json.dumps(_checksums(making)))
            try:
                making.rename(final)
            except OSError:
                if (
                    not final.is_dir()
                ):  # otherwise another process was quicker, and has made the same
                    raise
        except OSError as error:
            raise DataError(
                f"{source.path}: cannot be tokenised into data.cache_dir={cache}: {error}"
            ) from None
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return TokenFile(final, records.place, verify)


def _checksums(folder: Path) -> dict[str, str]:
    digests = {}
    for name in ("sizes.npy", "tokens.arrow"):
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _tokenise(
    source: SourceConfig, records: Records, template: Template, folder: Path, progress: Log
) -> None:
    sizes: list[np.ndarray] = []
    layout: Layout | None = None
    seen: dict[Any, int] = {}
    rows, done, started = records.rows(), 0, time.monotonic()
    with open(folder / "tokens.arrow", "wb") as file:
        with pa.ipc.new_stream(file, SCHEMA) as writer:
            while batch := list(islice(rows, BATCH)):
                conversations: list[list[Segment]] = []
                digests: list[int] = []
                for place, record, _ in batch:
                    try:
                        layout = layout or Layout.of(record, source.fields)
                        value = record.get(layout.names["id"])
                        check_id(value, place, seen, records.place)
                        digests.append(digest(value))
                        conversations.append(template.segments(*layout.conversation(record)))
                    except DataError as error:
                        raise DataError(f"{records.place}{place}: {error}") from None
                examples = template.encode(conversations)
                offsets = np.cumsum([0] + [len(ids) for ids, _ in examples], dtype=np.int32)
                columns = [
                    pa.ListArray.from_arrays(offsets, np.concatenate(column))
                    for column in zip(*examples, strict=True)
                ]
                writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
                rows_of = zip(examples, batch, digests, strict=True)
                sizes.append(
                    np.array(
                        [
                            (len(mask), mask.sum(), place, key)
                            for (_, mask), (place, *_), key in rows_of
                        ]
                    ).T
                )
                if not sizes[-1][1].all():
                    place = batch[int(np.argmin(sizes[-1][1]))][0]
                    raise DataError(
                        f"{records.place}{place}: no token of the example is learned; give it an answer that follows a prompt"
                    )
                done, share = done + len(batch), batch[-1][2]
                left = (time.monotonic() - started) * (1 - share) / share
                progress(
                    f"tokenising {source.name}: {done:,} examples, {share:.0%}, ETA {left:.0f} s"
                )
        if not sizes:
            raise DataError(f"{source.path}: holds no example")
        os.fsync(file.fileno())
    np.save(folder / "sizes.npy", np.concatenate(sizes, axis=1).astype(np.int64))
