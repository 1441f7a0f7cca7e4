"""Where records come from: json, jsonl, parquet or csv files, or a data set of the Hugging Face hub.

Files are read here, a record or a batch of them at a time, so that an error can name the place and no file need fit in memory; the hub is
read through `datasets`.
"""

import codecs
import csv
import difflib
import glob
import hashlib
import io
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from adaptsft.config.schema import DataConfig, SourceConfig
from adaptsft.data.remote import copy_of, is_remote
from adaptsft.errors import ConfigError, DataError

EXTENSIONS = (
    ".json",
    ".jsonl",
    ".parquet",
    ".csv",
)  # of files; .json in a folder is often about the data, not data
CHUNK = 1 << 20  # characters of a JSON array read at a time
LONGEST_ITEM = 1 << 28  # characters read in search of the end of one item
PATTERN = re.compile(r"[*?\[]")
SETTLED = 2.0  # seconds after its last change in which a file could change again without a change of its times, which have a granularity
HELD_BACK = re.compile(
    r"(?<![a-z])(test|testing|dev|val|valid|validation|eval|evaluation)(?![a-z])", re.IGNORECASE
)

Row = tuple[
    int, dict[str, Any], float
]  # place (line, item or row, from 1), record, share of the source read so far


@dataclass(frozen=True)
class Records:
    """An open source: a fingerprint of its content, how to name a place in it (this and a number), and its rows."""

    fingerprint: str
    place: str
    rows: Callable[[], Iterator[Row]]


def training_sources(config: DataConfig) -> list[SourceConfig]:
    """The configured sources, each with a name. Raises ConfigError where two have the same."""
    sources = config.sources or [
        SourceConfig(
            path=config.path, subset=config.subset, split=config.split, fields=config.fields
        )
    ]
    named = [replace(source, name=source.name or default_name(source.path)) for source in sources]
    for number, source in enumerate(named):
        if source.name in [other.name for other in named[:number]]:
            raise ConfigError(
                f"data.sources[{number}].name={source.name}: another source has this name; give each its own name"
            )
    return named


def default_name(path: str) -> str:
    """train.jsonl -> train, data/train-*.jsonl -> train, shards/*.jsonl -> shards."""
    if PATTERN.search(path) and not Path(path).expanduser().exists():
        parts = [
            re.split(r"[*?\[]", part)[0].strip("-_. ") for part in Path(path).with_suffix("").parts
        ]
        return next((part for part in reversed(parts) if part.strip("/")), path)
    return Path(path).stem if Path(path).suffix in EXTENSIONS else Path(path).name


def files_of(source: SourceConfig) -> list[str]:
    """The paths of the files that make up a source, sorted: those that a pattern matches, or the data files in a folder. Anything else
    stands for itself, and so does a folder in which `datasets` must tell splits apart. Raises DataError where a pattern matches nothing."""
    if is_remote(source.path):
        raise DataError(
            f"{source.path}: URLs are read for training with data.stream (files per part) only; else download the files"
        )
    path = Path(source.path).expanduser()
    if PATTERN.search(source.path) and not path.exists():
        found = sorted(
            name for name in glob.glob(str(path), recursive=True) if Path(name).is_file()
        )
        if not found:
            raise DataError(f"{source.path}: no file matches this pattern")
        return found
    if path.is_dir() and source.split == "train":
        found = sorted(
            str(file) for file in path.iterdir() if file.suffix in EXTENSIONS[1:] and file.is_file()
        )
        if not any(HELD_BACK.search(Path(name).stem) for name in found):
            return found or [source.path]
    return [source.path]


def open_records(source: SourceConfig, cache: Path) -> Records:
    """Raises DataError for a source that is not there or cannot be read. Bad lines are found later, by reading. The hashes of files are
    noted in `cache`, which also holds the copy of a remote file."""
    path = copy_of(source.path, cache) if is_remote(source.path) else Path(source.path).expanduser()
    if path.is_file():
        if path.suffix not in EXTENSIONS:
            raise DataError(
                f"{source.path}: unknown extension {path.suffix!r}; data files are {', '.join(EXTENSIONS)}"
            )
        if path.stat().st_size == 0:
            raise DataError(f"{source.path}: the file is empty")
        fingerprint = _content_hash(path, cache / "hashes")
        if path.suffix == ".parquet":
            return Records(
                fingerprint, f"{source.path}: row ", lambda: _parquet_rows(path, source.path)
            )
        if path.suffix == ".csv":
            return Records(fingerprint, f"{source.path}:", lambda: _csv_rows(path, source.path))
        if _first_byte(path) == b"[":
            return Records(
                fingerprint, f"{source.path}: item ", lambda: _json_items(path, source.path)
            )
        return Records(fingerprint, f"{source.path}:", lambda: _json_lines(path, source.path))
    if path.suffix in EXTENSIONS or (source.path.startswith((".", "/", "~")) and not path.is_dir()):
        raise DataError(f"{source.path}: no such file{_nearest(path)}")
    table = _load_hub(source)
    name = f"{source.path}, {source.split}" + (f", {source.subset}" if source.subset else "")
    return Records(table._fingerprint, f"{name}: row ", lambda: _table_rows(table))


def _content_hash(path: Path, notes: Path) -> str:
    """The sha256 of a file. It is noted under the file's path, size, inode and times of change, and read from there while these are the
    same (git's index relies on the same): a start, and each of its ranks, need not read all data to know that it has not changed."""
    stat, now = path.stat(), time.time()
    identity = [str(path.resolve()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    note = notes / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch(r"[0-9a-f]{64}", noted := note.read_text()):
            return noted
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if (
        now - max(stat.st_mtime, stat.st_ctime) > SETTLED
        and path.stat().st_ctime_ns == stat.st_ctime_ns
    ):
        with suppress(OSError):  # a cache that cannot be written serves without notes
            notes.mkdir(parents=True, exist_ok=True)
            writing = note.with_suffix(f".{uuid.uuid4().hex}")
            writing.write_text(digest)
            writing.rename(note)
    return digest


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()[:1]


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: not a JSON object but {type(value).__name__}, {str(value)[:60]!r}; write one object per example"
        )
    return value


def _json_lines(path: Path, name: str) -> Iterator[Row]:
    size, done = path.stat().st_size, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            done += len(line)
            if not line.strip():
                continue
            try:
                value = json.loads(line.strip().decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{name}:{number}: not UTF-8 (byte {error.start} of the line); convert the file to UTF-8"
                ) from None
            except json.JSONDecodeError as error:
                reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
                raise DataError(
                    f"{name}:{number}: not valid JSON: {reason}; each line must be one JSON object, or the whole file one array of them"
                ) from None
            yield number, _object(value, f"{name}:{number}"), done / size


def _json_items(path: Path, name: str) -> Iterator[Row]:
    """The items of a file that is one JSON array, decoded one at a time: the file need not fit in memory."""
    size, item = path.stat().st_size, 1
    with path.open("rb") as binary, io.TextIOWrapper(binary, encoding="utf-8-sig") as file:
        try:
            text = file.read(CHUNK)
            place = text.index("[") + 1
            if text[_skip_space(text, place) :].startswith("]"):
                return
            while True:
                try:
                    value, end = json.JSONDecoder().raw_decode(text, _skip_space(text, place))
                    end = _skip_space(text, end)
                    if text[end] not in ",]":
                        raise json.JSONDecodeError("',' or ']' expected after the item", text, end)
                except (json.JSONDecodeError, IndexError) as error:
                    more = file.read(
                        max(CHUNK, len(text) - place)
                    )  # doubling: an item of any length costs linear time
                    if not more or len(text) - place > LONGEST_ITEM:
                        reason = (
                            error.msg
                            if isinstance(error, json.JSONDecodeError)
                            else "the file ends within the array"
                        )
                        raise DataError(f"{name}: item {item}: not valid JSON: {reason}") from None
                    text, place = text[place:] + more, 0
                    continue
                yield item, _object(value, f"{name}: item {item}"), binary.tell() / size
                if text[end] == "]":
                    if (text[end + 1 :] + file.read()).strip():
                        raise DataError(
                            f"{name}: there is more after the array, which ends with item {item}; write a single array"
                        )
                    return
                item, place = item + 1, end + 1
        except UnicodeDecodeError:
            raise DataError(
                f"{name}: not UTF-8, at item {item} or soon after it; convert the file to UTF-8"
            ) from None


def _skip_space(text: str, place: int) -> int:
    while text[place : place + 1].isspace():
        place += 1
    return place


def _csv_rows(path: Path, name: str) -> Iterator[Row]:
    """Every cell is text: an answer such as 72, NA or None must not turn into a number or a null, as it does in data frames."""
    size, line = path.stat().st_size, 1
    csv.field_size_limit(LONGEST_ITEM)
    with (
        path.open("rb") as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file,
    ):
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    if len(cells) != len(header):
                        raise DataError(
                            f"{name}:{line}: {len(cells)} cells in a table of {len(header)} columns; look for a missing quote"
                        )
                    yield line, dict(zip(header, cells, strict=True)), binary.tell() / size
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{name}:{line}: not valid CSV: {error}") from None
        except UnicodeDecodeError:
            raise DataError(
                f"{name}: not UTF-8, at line {line} or soon after it; convert the file to UTF-8"
            ) from None


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record, number / file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: cannot be read as parquet, after row {number}: {error}") from None


def _load_hub(source: SourceConfig) -> datasets.Dataset:
    # datasets' cache knows a local folder by its name and README alone, and would give rows that are no longer there
    mode = datasets.DownloadMode.FORCE_REDOWNLOAD if Path(source.path).is_dir() else None
    try:
        return datasets.load_dataset(
            source.path, source.subset, split=source.split, download_mode=mode
        )
    except (DatasetsError, ValueError, OSError) as error:
        raise DataError(
            f"{source.path}: neither a file here nor a data set of the hub that can be read: {error.__cause__ or error}"
        ) from None


def _table_rows(table: datasets.Dataset) -> Iterator[Row]:
    for number, record in enumerate(cast(Iterable[dict[str, Any]], table), 1):
        yield number, record, number / len(table)
