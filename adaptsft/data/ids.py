"""The ids of records. Records of a source with the same id, in one file or in several, are how a
file that was added twice, or shards that overlap, show.

Where the user maps data.fields.id, a repeated id is an error. Elsewhere a column that happens to be
called `id` may mean anything, so repeated ids are reported in one line and trained on.

The cache of a file keeps 64 bits of each id, so that files can be compared whenever they are opened
together, without reading them again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from adaptsft.config.schema import SourceConfig
from adaptsft.data.files import is_remote
from adaptsft.data.remote import copy_of
from adaptsft.data.sources import open_records
from adaptsft.errors import DataError

NONE = 0  # digest of a record without an id
Place = tuple[int, int]  # file, number of the record in it


class Digested(Protocol):
    """What is compared here of a tokenised file (`cache.TokenFile`)."""

    places: np.ndarray

    def digests(self) -> np.ndarray: ...

    def where(self, number: int) -> str: ...


def ids_are_mapped(source: SourceConfig) -> bool:
    """Whether the user says which field holds the ids: then a repeated one is an error."""
    return "id" in source.fields


def digest(value: Any) -> int:
    """64 bits of an id, signed."""
    if value is None:
        return NONE
    text = json.dumps(value, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


class IdCheck:
    """Compares the ids of one file while it is tokenised, where they are mapped. `prefix` and a
    place of a record are where it is, as file:line."""

    def __init__(self, source: SourceConfig, prefix: str) -> None:
        self.active, self.prefix = ids_are_mapped(source), prefix
        self.seen: dict[Any, int] = {}  # id: place of its record

    def check(self, value: Any, place: int) -> None:
        """Raises DataError where a record before this one has the same id."""
        if value is None or not self.active:
            return
        value = value if isinstance(value, str | int) else json.dumps(value, default=str)
        if value in self.seen:
            raise _repeated(value, f"{self.prefix}{self.seen[value]}")
        self.seen[value] = place


def check_ids_of_files(
    source: SourceConfig, paths: list[str], files: Sequence[Digested], cache: Path
) -> None:
    """Raises DataError where records of two of the files have the same id: where their digests
    agree, the files are read again, and the ids themselves decide."""

    def id_at(file: int, number: int) -> Any:
        entries = open_records(replace(source, path=paths[file]), cache).read()
        place = files[file].places[number]
        record = next(record for at, record, _ in entries if at == place)
        assert isinstance(record, dict)  # it was read before
        return record[source.fields.get("id", "id")]

    for first, again in same_digests([file.digests() for file in files]):
        value = id_at(*again)
        if value == id_at(*first):
            for file in (first[0], again[0]):  # once repaired, a remote file must be fetched again
                if is_remote(paths[file]):
                    copy_of(paths[file], cache).unlink(missing_ok=True)
            error = _repeated(value, files[first[0]].where(first[1]))
            raise DataError(f"{files[again[0]].where(again[1])}: {error}")


def warn_of_repeated_ids(
    source: SourceConfig, files: Sequence[Digested], log: Callable[[str], None]
) -> None:
    """Log one line where ids of a source repeat. By digests alone, which are in the cache: two of a
    million ids share one by chance once in 40 million runs."""
    if found := first_repeated([file.digests() for file in files]):
        first, again, count = found
        log(
            f"warning: {source.name}: {count:,} records have the id of an earlier one, the first "
            f"{files[again[0]].where(again[1])}, with that of {files[first[0]].where(first[1])}: "
            "was a file added twice? All are trained on. To make this an error, name the field of "
            "the ids by data.fields.id; data.fields.id=none compares none"
        )


def _repeated(value: Any, first: str) -> DataError:
    return DataError(
        f"the id {value!r} is that of {first} too; remove one of the two, or set "
        "data.fields.id=none if ids may repeat"
    )


def same_digests(files: Sequence[np.ndarray]) -> Iterator[tuple[Place, Place]]:
    """Records with the same digest as one before them, in order: (the first such, this one).
    `files` holds an int64 [records] for each file."""
    whole = np.concatenate(files)
    twice = _found_twice(whole)
    if not len(twice):
        return
    first: dict[int, int] = {}
    for index in np.flatnonzero(np.isin(whole, twice)).tolist():
        if first.setdefault(int(whole[index]), index) != index:
            yield _place(first[int(whole[index])], files), _place(index, files)


def first_repeated(files: Sequence[np.ndarray]) -> tuple[Place, Place, int] | None:
    """The first record with the digest of an earlier one: (that one, this one, how many there are
    of this kind); None where there is none."""
    whole = np.concatenate(files)
    if not len(_found_twice(whole)):
        return None
    repeated = whole != NONE
    repeated[np.unique(whole, return_index=True)[1]] = False
    again = int(np.argmax(repeated))
    first = int(np.argmax(whole == whole[again]))
    return _place(first, files), _place(again, files), int(repeated.sum())


def _found_twice(digests: np.ndarray) -> np.ndarray:
    """Those of ids that occur more than once: a sort, 0.1 s for a million."""
    ordered = np.sort(digests)
    return ordered[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != NONE)]


def _place(index: int, files: Sequence[np.ndarray]) -> Place:
    """Of a record in all files concatenated."""
    ends = np.cumsum([len(file) for file in files])
    file = int(np.searchsorted(ends, index, side="right"))
    return file, index - int(ends[file]) + len(files[file])
