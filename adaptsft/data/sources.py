"""An open source: a json, jsonl, parquet or csv file, or a data set of the Hugging Face hub.

Files are read by `readers`; the hub is read through `datasets`.
"""

import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
from datasets.exceptions import DatasetsError

from adaptsft.config.schema import SourceConfig
from adaptsft.data.files import check_kind, is_remote, kind_of, local_file
from adaptsft.data.readers import (
    Entry,
    is_json_array,
    read_csv,
    read_json_array,
    read_json_lines,
    read_parquet,
    without_nulls,
)
from adaptsft.data.remote import copy_of
from adaptsft.errors import DataError

# seconds after its last change in which a file could change again without a change of its times,
# which have a granularity
SETTLED = 2.0


@dataclass(frozen=True)
class Records:
    """An open source: its name, a fingerprint of its content, what a place in it is called (this
    and a number), and its records."""

    name: str
    fingerprint: str
    place: str
    read: Callable[[], Iterator[Entry]]


def open_records(source: SourceConfig, cache: Path) -> Records:
    """Raises DataError for a source that is not there or cannot be read. Bad lines are found later,
    by reading. The hashes of files are noted in `cache`, which also holds the copy of a remote
    file."""
    if is_remote(source.path):
        copy = path = copy_of(source.path, cache)
        check_kind(copy, source.path)
    else:
        path = local_file(source.path)
    if path is None:
        table = _load_hub(source)
        name = f"{source.path}, {source.split}" + (f", {source.subset}" if source.subset else "")
        return Records(name, table._fingerprint, f"{name}: row ", lambda: _read_table(table))
    separator, read = ":", read_json_lines
    kind = kind_of(path)
    if kind == ".parquet":
        separator, read = ": row ", read_parquet
    elif kind == ".csv":
        read = read_csv
    elif is_json_array(path, source.path):
        separator, read = ": item ", read_json_array
    fingerprint = _content_hash(path, cache / "hashes")
    place = source.path + separator
    return Records(source.path, fingerprint, place, lambda: read(path, source.path))


def _content_hash(path: Path, notes: Path) -> str:
    """The sha256 of a file.

    It is noted under the file's path, size, inode and times of change, and read from there while
    these are the same (git's index relies on the same): a start, and each of its ranks, need not
    read all data to know that it has not changed.
    """
    stat, now = path.stat(), time.time()
    identity = [str(path.resolve()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    note = notes / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch(r"[0-9a-f]{64}", noted := note.read_text()):
            return noted
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settled = now - max(stat.st_mtime, stat.st_ctime) > SETTLED
    if settled and path.stat().st_ctime_ns == stat.st_ctime_ns:
        with suppress(OSError):  # a cache that cannot be written serves without notes
            notes.mkdir(parents=True, exist_ok=True)
            # a name of its own: several processes may note the same file at once
            writing = note.with_suffix(f".{uuid.uuid4().hex}")
            writing.write_text(digest)
            writing.rename(note)
    return digest


def _load_hub(source: SourceConfig) -> datasets.Dataset:
    # datasets' cache knows a local folder by its name and README alone, and would give rows that
    # are no longer there
    mode = datasets.DownloadMode.FORCE_REDOWNLOAD if Path(source.path).is_dir() else None
    try:
        return datasets.load_dataset(
            source.path, source.subset, split=source.split, download_mode=mode
        )
    except (DatasetsError, ValueError, OSError) as error:
        raise DataError(
            f"{source.path}: neither a file here nor a data set of the hub that can be read: "
            f"{error.__cause__ or error}"
        ) from None


def _read_table(table: datasets.Dataset) -> Iterator[Entry]:
    for number, record in enumerate(cast(Iterable[dict[str, Any]], table), 1):
        yield number, without_nulls(record), number / len(table)
