"""The cache of tokens: every file of a source is tokenised once, into a folder of data.cache_dir
that is found again by a fingerprint.

The folder holds tokens.arrow (record batches with the columns input_ids, mask and weights,
memory-mapped when read; `datasets.Dataset.from_file` opens it too), sizes.npy (int64 [4, examples]:
tokens, target tokens, place in the file, digest of the id), weights.npy (float64 [examples]: sum of
the target tokens' weights), facts.json (what was noticed), and the checksums of all.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa

from adaptsft.config.schema import SourceConfig
from adaptsft.data.encoding import Encoded, Encoder
from adaptsft.data.reading import Facts, Read, RecordReader
from adaptsft.data.sources import Records, open_records
from adaptsft.data.template import Template
from adaptsft.errors import DataError

CHECKSUMS = "sha256.json"
FILES = ("sizes.npy", "weights.npy", "tokens.arrow", "facts.json")
FORMAT = 4  # of the cache; raise it when files or tokenisation change
# at most, per record batch and per call of the tokenizer
BATCH = 1000  # examples
CHARACTERS = 4_000_000  # more only where one example has more
# weights are empty where every target token of the example weighs 1
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "mask": pa.list_(pa.bool_()),
        "weights": pa.list_(pa.float32()),
    }
)
PROGRESS_EVERY = 5.0  # seconds

Log = Callable[[str], None]


class TokenFile:
    """The tokenised examples of one file, memory-mapped. They are numbered from 0."""

    def __init__(self, folder: Path, records: Records, verify: bool) -> None:
        self.folder, self.fingerprint = folder, folder.name
        self.name, self.place = records.name, records.place
        try:
            if verify and json.loads((folder / CHECKSUMS).read_text()) != _checksums(folder):
                raise ValueError("its sha256 is not the one written")
            lengths, target_tokens, self.places, _ = np.load(folder / "sizes.npy")
            self.target_weight = np.load(folder / "weights.npy")
            self.facts = Facts(**json.loads((folder / "facts.json").read_text()))
            table = pa.ipc.open_stream(pa.memory_map(str(folder / "tokens.arrow"))).read_all()
            if len(table) != len(self.places):
                raise pa.ArrowInvalid("record batches are missing")
        except (pa.ArrowInvalid, OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{folder}: the tokenised data is damaged ({error}); delete this folder, and it is "
                "made again"
            ) from None
        self.lengths = lengths.astype(np.int32)
        self.target_tokens = target_tokens.astype(np.int32)
        self.places = self.places.copy()
        self.ids, self.masks, self.weights = (column.chunks for column in table.columns)
        # of each record batch, the number after that of its last example
        self.ends = list(accumulate(map(len, self.ids)))

    def __len__(self) -> int:
        return len(self.places)

    def read(self, number: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `length` tokens of an example: (ids int32, mask bool)."""
        batch, index = self._locate(number)
        ids, masks = self.ids[batch], self.masks[batch]
        begin = ids.offsets[index].as_py()
        mask = masks.values.slice(begin, length).to_numpy(zero_copy_only=False)
        return ids.values.slice(begin, length).to_numpy(), mask

    def read_weights(self, number: int, length: int) -> np.ndarray | None:
        """float32 [length] of the same tokens; None where every target token weighs 1."""
        batch, index = self._locate(number)
        weights = self.weights[batch]
        begin, end = weights.offsets[index].as_py(), weights.offsets[index + 1].as_py()
        return weights.values.slice(begin, length).to_numpy() if end > begin else None

    def _locate(self, number: int) -> tuple[int, int]:
        """The record batch of an example, and its number there."""
        batch = bisect_right(self.ends, number)
        return batch, number - (self.ends[batch - 1] if batch else 0)

    @property
    def skipped(self) -> list[str]:
        """file:line and why, of records that data.on_bad_record=skip left out."""
        return [f"{self.place}{line}" for line in self.facts.skipped]

    def where(self, number: int) -> str:
        """Where an example comes from, as file:line."""
        return f"{self.place}{self.places[number]}"

    def digests(self) -> np.ndarray:
        """Of the ids, int64 [examples]; not kept in memory."""
        return np.load(self.folder / "sizes.npy", mmap_mode="r")[3]

    def close(self) -> None:
        self.ids, self.masks, self.weights = [], [], []


def tokenize_once(
    source: SourceConfig, template: Template, cache: Path, progress: Log, verify: bool
) -> TokenFile:
    """The tokens of `source`, one file here or a data set of the hub, from the cache.

    If they are not there yet, they are written to a temporary folder, which is then renamed: no
    process sees half of it.
    """
    records = open_records(source, cache)
    parts = [FORMAT, records.fingerprint, template.fingerprint, sorted(source.fields.items())]
    key = json.dumps([*parts, template.config.on_bad_record])
    final = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not final.is_dir():
        making = cache / f"{final.name}.{uuid.uuid4().hex}"
        try:
            making.mkdir(parents=True)
            _tokenize(source, records, template, making, progress)
            (making / CHECKSUMS).write_text(json.dumps(_checksums(making)))
            try:
                making.rename(final)
            except OSError:
                # otherwise another process has written the same cache first
                if not final.is_dir():
                    raise
        except OSError as error:
            raise DataError(
                f"{source.path}: cannot be tokenised into data.cache_dir={cache}: {error}"
            ) from None
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return TokenFile(final, records, verify)


def throttled(log: Log) -> Log:
    """Of lines that come fast, one every few seconds."""
    shown = time.monotonic()

    def progress(line: str) -> None:
        nonlocal shown
        if time.monotonic() - shown > PROGRESS_EVERY:
            shown = time.monotonic()
            log(line)

    return progress


def _checksums(folder: Path) -> dict[str, str]:
    digests = {}
    for name in FILES:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _tokenize(
    source: SourceConfig, records: Records, template: Template, folder: Path, progress: Log
) -> None:
    """Write the files of the cache, of all records, to the folder."""
    reader = RecordReader(source, records, template)
    batches = _encoded(reader, template.encoder, source.name, progress)
    sizes: list[np.ndarray] = []
    target_weight: list[np.ndarray] = []
    with open(folder / "tokens.arrow", "wb") as file:
        with pa.ipc.new_stream(file, SCHEMA) as writer:
            for batch in batches:
                sizes.append(_write_batch(batch, writer))
                of_batch = [encoded.weights.sum(dtype=np.float64) for encoded, _ in batch]
                target_weight.append(np.array(of_batch))
                highest = max(int(encoded.ids.max()) for encoded, _ in batch)
                reader.facts.highest_id = max(reader.facts.highest_id, highest)
        if not sizes:
            skipped = reader.facts.skipped
            bad = f": its {len(skipped):,} records are bad: {skipped[0]}" if skipped else ""
            raise DataError(f"{source.path}: holds no example{bad}")
        os.fsync(file.fileno())
    np.save(folder / "sizes.npy", np.concatenate(sizes, axis=1).astype(np.int64))
    np.save(folder / "weights.npy", np.concatenate(target_weight))
    (folder / "facts.json").write_text(json.dumps(dataclasses.asdict(reader.facts)))


def _encoded(
    reader: RecordReader, encoder: Encoder, name: str, progress: Log
) -> Iterator[list[tuple[Encoded, Read]]]:
    """The examples of a file as tokens, in batches that are not empty. Raises DataError for one
    that cannot be, or without a target token; or notes it."""
    done, started = 0, time.monotonic()
    for batch in _batches(reader):
        try:
            found: list[Encoded | Exception] = [*encoder.encode([read.example for read in batch])]
        except Exception:  # of the tokenizer; which example it was shows one at a time
            found = [_try(encoder, read) for read in batch]
        good = []
        for encoded, read in zip(found, batch, strict=True):
            where = f"{reader.records.place}{read.place}"
            if isinstance(encoded, Exception):
                reader.bad(DataError(f"{where}: the tokenizer refuses its text: {encoded}"))
            elif not encoded.weights.any():
                reader.bad(
                    DataError(
                        f"{where}: the example has no target token; give it an answer that follows "
                        "a prompt"
                    )
                )
            else:
                good.append((encoded, read))
        if good:
            yield good
        done, share = done + len(batch), batch[-1].share
        left = (time.monotonic() - started) * (1 - share) / share
        progress(f"tokenising {name}: {done:,} examples, {share:.0%}, ETA {left:.0f} s")


def _batches(reads: Iterable[Read]) -> Iterator[list[Read]]:
    """Examples whose tokens fit into memory together."""
    batch: list[Read] = []
    characters = 0
    for read in reads:
        size = sum(len(segment.text) for segment in read.example.segments)
        if batch and (len(batch) == BATCH or characters + size > CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(read)
        characters += size
    if batch:
        yield batch


def _try(encoder: Encoder, read: Read) -> Encoded | Exception:
    try:
        return encoder.encode([read.example])[0]
    except Exception as error:
        return error


def _write_batch(
    batch: list[tuple[Encoded, Read]], writer: pa.ipc.RecordBatchStreamWriter
) -> np.ndarray:
    """Write the tokens of these examples; their columns of sizes.npy, int64 [4, examples]."""
    ids = [encoded.ids for encoded, _ in batch]
    masks = [encoded.weights > 0 for encoded, _ in batch]
    weights = [
        encoded.weights if (encoded.weights[mask] != 1).any() else encoded.weights[:0]
        for (encoded, _), mask in zip(batch, masks, strict=True)
    ]
    columns = [
        pa.ListArray.from_arrays(
            np.cumsum([0, *map(len, column)], dtype=np.int32), np.concatenate(column)
        )
        for column in (ids, masks, weights)
    ]
    writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    target_tokens = [int(mask.sum()) for mask in masks]
    places, digests = ([read.place for _, read in batch], [read.digest for _, read in batch])
    return np.array([list(map(len, ids)), target_tokens, places, digests])
