"""The records of one file, one at a time: JSON lines, a JSON array, CSV and parquet.

No file need fit in memory, and every error names the file and the place in it.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adaptsft.errors import DataError

CHUNK = 1 << 20  # characters of a JSON array read at a time
LONGEST_ITEM = 1 << 28  # characters read in search of the end of one item

# place (line, item or table row, from 1), record, share of the file read so far
Entry = tuple[int, dict[str, Any], float]


def is_json_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def read_json_lines(path: Path, name: str) -> Iterator[Entry]:
    """`name` is what errors call the file, here and below."""
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
                    f"{name}:{number}: not UTF-8 (byte {error.start} of the line); convert the "
                    "file to UTF-8"
                ) from None
            except json.JSONDecodeError as error:
                reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
                raise DataError(
                    f"{name}:{number}: not valid JSON: {reason}; each line must be one JSON "
                    "object, or the whole file one array of them"
                ) from None
            yield number, _object(value, f"{name}:{number}"), done / size


def read_json_array(path: Path, name: str) -> Iterator[Entry]:
    """The items of a file that is one JSON array, decoded one at a time."""
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
                    # doubling: an item of any length costs linear time
                    more = file.read(max(CHUNK, len(text) - place))
                    if not more or len(text) - place > LONGEST_ITEM:
                        at_end = "the file ends within the array"
                        reason = error.msg if isinstance(error, json.JSONDecodeError) else at_end
                        raise DataError(f"{name}: item {item}: not valid JSON: {reason}") from None
                    text, place = text[place:] + more, 0
                    continue
                yield item, _object(value, f"{name}: item {item}"), binary.tell() / size
                if text[end] == "]":
                    if (text[end + 1 :] + file.read()).strip():
                        raise DataError(
                            f"{name}: there is more after the array, which ends with item {item}; "
                            "write a single array"
                        )
                    return
                item, place = item + 1, end + 1
        except UnicodeDecodeError:
            raise DataError(
                f"{name}: not UTF-8, at item {item} or soon after it; convert the file to UTF-8"
            ) from None


def read_csv(path: Path, name: str) -> Iterator[Entry]:
    """Every cell is text: an answer such as 72, NA or None must not turn into a number or a null,
    as it does in data frames."""
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
                            f"{name}:{line}: {len(cells)} cells in a table of {len(header)} "
                            "columns; look for a missing quote"
                        )
                    yield line, dict(zip(header, cells, strict=True)), binary.tell() / size
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{name}:{line}: not valid CSV: {error}") from None
        except UnicodeDecodeError:
            raise DataError(
                f"{name}: not UTF-8, at line {line} or soon after it; convert the file to UTF-8"
            ) from None


def read_parquet(path: Path, name: str) -> Iterator[Entry]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record, number / file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: cannot be read as parquet, after row {number}: {error}") from None


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: not a JSON object but {type(value).__name__}, {str(value)[:60]!r}; write "
            "one object per example"
        )
    return value


def _skip_space(text: str, place: int) -> int:
    while text[place : place + 1].isspace():
        place += 1
    return place
