"""The cache of tokens: every file of a source is tokenised once, into a folder of data.cache_dir
that is found again by a fingerprint.

The folder holds tokens.arrow (record batches with the columns input_ids and mask, memory-mapped
when read; `datasets.Dataset.from_file` opens it too), sizes.npy (int64 [4, examples]: tokens,
target tokens, place in the file, digest of the id), and the checksums of both.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from adaptsft.config.schema import SourceConfig
from adaptsft.data.ids import IdCheck, digest
from adaptsft.data.layout import Layout
from adaptsft.data.readers import Entry
from adaptsft.data.sources import Records, open_records
from adaptsft.data.template import Segment, Template
from adaptsft.errors import DataError

CHECKSUMS = "sha256.json"
FORMAT = 3  # of the cache; raise it when files or tokenisation change
BATCH = 1000  # examples per record batch, and per call of the tokenizer
SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "mask": pa.list_(pa.bool_())})
PROGRESS_EVERY = 5.0  # seconds

Log = Callable[[str], None]


class TokenFile:
    """The tokenised examples of one file, memory-mapped. They are numbered from 0."""

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
                f"{folder}: the tokenised data is damaged ({error}); delete this folder, and it is "
                "made again"
            ) from None
        self.lengths = lengths.astype(np.int32)
        self.target_tokens = target_tokens.astype(np.int32)
        self.places = self.places.copy()
        self.ids, self.masks = table.column("input_ids").chunks, table.column("mask").chunks

    def __len__(self) -> int:
        return len(self.places)

    def read(self, number: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `length` tokens of an example: (ids int32, mask bool)."""
        batch, index = divmod(number, BATCH)
        ids, masks = self.ids[batch], self.masks[batch]
        begin = ids.offsets[index].as_py()
        mask = masks.values.slice(begin, length).to_numpy(zero_copy_only=False)
        return ids.values.slice(begin, length).to_numpy(), mask

    def where(self, number: int) -> str:
        """Where an example comes from, as file:line."""
        return f"{self.place}{self.places[number]}"

    def digests(self) -> np.ndarray:
        """Of the ids, int64 [examples]; not kept in memory."""
        return np.load(self.folder / "sizes.npy", mmap_mode="r")[3]

    def close(self) -> None:
        self.ids, self.masks = [], []


def tokenize_once(
    source: SourceConfig, template: Template, cache: Path, progress: Log, verify: bool
) -> TokenFile:
    """The tokens of `source`, one file here or a data set of the hub, from the cache.

    If they are not there yet, they are written to a temporary folder, which is then renamed: no
    process sees half of it.
    """
    records = open_records(source, cache)
    key = json.dumps(
        [FORMAT, records.fingerprint, template.fingerprint, sorted(source.fields.items())]
    )
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
    return TokenFile(final, records.place, verify)


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
    for name in ("sizes.npy", "tokens.arrow"):
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _tokenize(
    source: SourceConfig, records: Records, template: Template, folder: Path, progress: Log
) -> None:
    """Write tokens.arrow and sizes.npy of all records to the folder."""
    sizes: list[np.ndarray] = []
    layout: Layout | None = None
    id_check = IdCheck(source, records.place)
    entries, done, started = records.read(), 0, time.monotonic()
    with open(folder / "tokens.arrow", "wb") as file:
        with pa.ipc.new_stream(file, SCHEMA) as writer:
            while batch := list(islice(entries, BATCH)):
                if layout is None:
                    layout = _layout(batch[0], source, records.place)
                sizes.append(_write_batch(batch, layout, id_check, template, records.place, writer))
                done, share = done + len(batch), batch[-1][2]
                left = (time.monotonic() - started) * (1 - share) / share
                progress(
                    f"tokenising {source.name}: {done:,} examples, {share:.0%}, ETA {left:.0f} s"
                )
        if not sizes:
            raise DataError(f"{source.path}: holds no example")
        os.fsync(file.fileno())
    np.save(folder / "sizes.npy", np.concatenate(sizes, axis=1).astype(np.int64))


def _layout(first: Entry, source: SourceConfig, name: str) -> Layout:
    place, record, _ = first
    try:
        return Layout.of(record, source.fields)
    except DataError as error:
        raise DataError(f"{name}{place}: {error}") from None


def _write_batch(
    batch: list[Entry],
    layout: Layout,
    id_check: IdCheck,
    template: Template,
    name: str,
    writer: pa.ipc.RecordBatchStreamWriter,
) -> np.ndarray:
    """Tokenise and write these records; the columns of sizes.npy for them, int64 [4, records]."""
    conversations: list[list[Segment]] = []
    digests: list[int] = []
    for place, record, _ in batch:
        try:
            value = record.get(layout.names["id"])
            id_check.check(value, place)
            digests.append(digest(value))
            conversations.append(template.segments(*layout.conversation(record)))
        except DataError as error:
            raise DataError(f"{name}{place}: {error}") from None
    examples = template.encode(conversations)
    offsets = np.cumsum([0] + [len(ids) for ids, _ in examples], dtype=np.int32)
    columns = [
        pa.ListArray.from_arrays(offsets, np.concatenate(column))
        for column in zip(*examples, strict=True)
    ]
    writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    places = [place for place, _, _ in batch]
    lengths = [len(mask) for _, mask in examples]
    target_tokens = [int(mask.sum()) for _, mask in examples]
    if 0 in target_tokens:
        raise DataError(
            f"{name}{places[target_tokens.index(0)]}: the example has no target token; give it an "
            "answer that follows a prompt"
        )
    return np.array([lengths, target_tokens, places, digests])
