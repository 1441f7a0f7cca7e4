"""The ids of records: no two records of a source may have the same, in one file or in several.

Those of a file are compared while it is tokenised. Its cache keeps 64 bits of each, so that files can be compared whenever they are opened
together, without reading them again; where two records agree in these, the ids themselves decide.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adaptsft.errors import DataError

NONE = 0  # digest of a record without an id
Place = tuple[int, int]  # file, row


def digest(value: Any) -> int:
    """64 bits of an id, signed."""
    if value is None:
        return NONE
    text = json.dumps(value, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def check_id(value: Any, place: int, seen: dict[Any, int], prefix: str) -> None:
    """Note the id of a record in `seen`, which maps those of its file to their places. Raises DataError where it is there."""
    if value is None:
        return
    value = value if isinstance(value, str | int) else json.dumps(value, default=str)
    if value in seen:
        raise repeated(value, f"{prefix}{seen[value]}")
    seen[value] = place


def repeated(value: Any, first: str) -> DataError:
    return DataError(
        f"the id {value!r} is that of {first} too; remove one of the two, or set data.fields.id=none if ids may repeat"
    )


def same_digests(files: Sequence[np.ndarray]) -> Iterator[tuple[Place, Place]]:
    """Records with the same digest as one before them, in order: (the first such, this one). `files` holds an int64 [rows] for each."""
    whole = np.concatenate(files)
    ordered = np.sort(whole)
    twice = ordered[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] != NONE)]
    if not len(twice):
        return
    ends = np.cumsum([len(file) for file in files])
    first: dict[int, Place] = {}
    for row in np.flatnonzero(np.isin(whole, twice)).tolist():
        number = int(np.searchsorted(ends, row, side="right"))
        place = number, row - int(ends[number]) + len(files[number])
        if first.setdefault(int(whole[row]), place) != place:
            yield first[int(whole[row])], place
