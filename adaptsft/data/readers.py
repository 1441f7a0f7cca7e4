"""The records of one file, one at a time: JSON lines, a JSON array, CSV (each of them may be
compressed by gzip) and parquet.

No file need fit in memory, and every error names the file and the place in it. A record that cannot
be read is given as its error, so that the others still can be; a file that cannot is raised.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from adaptsft.data.messages import is_conversation
from adaptsft.errors import DataError

CHUNK = 1 << 20  # characters of a JSON array read at a time
GZIP = b"\x1f\x8b"  # begins every such file
LONGEST_ITEM = 1 << 28  # characters read in search of the end of one item

# place (line, item or table row, from 1), record or why there is none, share of the file so far
Entry = tuple[int, dict[str, Any] | DataError, float]


def is_json_array(path: Path, name: str) -> bool:
    """Whether the file is one array of records: not lines of records, nor lines of conversations,
    of which each is an array of messages."""
    with _opened(path, name) as (file, _):
        start = file.read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start.startswith(b"["):
        return False
    first, line_break, _ = start.partition(b"\n")
    try:
        # the first message is enough: a long conversation need not have been read to its end
        text = first.decode("utf-8", "ignore")
        if line_break:
            return not is_conversation(json.loads(text))
        return not is_conversation([json.JSONDecoder().raw_decode(text, _skip_space(text, 1))[0]])
    except (ValueError, RecursionError):
        return True


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """(the content of a file that may be compressed, the file itself, whose position tells how much
    of it has been read)."""
    with path.open("rb") as raw:
        if path.suffix != ".gz":
            if raw.peek(2)[:2] == GZIP:
                raise DataError(f"{name}: is compressed by gzip; add .gz to its name")
            yield raw, raw
            return
        try:
            with gzip.open(raw) as file:
                yield cast(IO[bytes], file), raw
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{name}: cannot be decompressed by gzip: {error}") from None


def read_json_lines(path: Path, name: str) -> Iterator[Entry]:
    """`name` is what errors call the file, here and below."""
    size = path.stat().st_size
    with _opened(path, name) as (file, raw):
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _record_of(line, f"{name}:{number}", number == 1), raw.tell() / size


def _record_of(line: bytes, place: str, first: bool) -> dict[str, Any] | DataError:
    """The record of a line of JSON, or why there is none."""
    try:
        text = line.strip().decode("utf-8-sig" if first else "utf-8")
        return _object(json.loads(text, object_pairs_hook=_once_each), place)
    except UnicodeDecodeError as error:
        return DataError(
            f"{place}: not UTF-8 (byte {error.start} of the line); convert the file to UTF-8"
        )
    except json.JSONDecodeError as error:
        reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        return DataError(
            f"{place}: not valid JSON: {reason}; each line must be one JSON object, or the whole "
            "file one array of them"
        )
    except (ValueError, RecursionError) as error:
        return DataError(f"{place}: cannot be read as JSON: {_reason(error)}; remove or repair it")


def read_json_array(path: Path, name: str) -> Iterator[Entry]:
    """The items of a file that is one JSON array, decoded one at a time."""
    size, item = path.stat().st_size, 1
    decoder = json.JSONDecoder(object_pairs_hook=_once_each)
    with (
        _opened(path, name) as (binary, raw),
        io.TextIOWrapper(binary, encoding="utf-8-sig") as file,
    ):
        try:
            text = file.read(CHUNK)
            place = text.index("[") + 1
            if text[_skip_space(text, place) :].startswith("]"):
                return
            while True:
                try:
                    value, end = decoder.raw_decode(text, _skip_space(text, place))
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
                yield item, _object(value, f"{name}: item {item}"), raw.tell() / size
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
        except (ValueError, RecursionError) as error:
            reason = _reason(error)
            raise DataError(f"{name}: item {item}: cannot be read as JSON: {reason}") from None


def read_csv(path: Path, name: str) -> Iterator[Entry]:
    """Every cell is text: an answer such as 72, NA or None must not turn into a number or a null,
    as it does in data frames."""
    size, line = path.stat().st_size, 1
    csv.field_size_limit(LONGEST_ITEM)
    with (
        _opened(path, name) as (binary, raw),
        io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file,
    ):
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if twice := next((name for name in header if header.count(name) > 1), None):
                raise DataError(f"{name}:1: two columns are called {twice!r}; rename one")
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    record: dict[str, Any] | DataError = dict(zip(header, cells, strict=False))
                    if len(cells) != len(header):
                        record = DataError(
                            f"{name}:{line}: {len(cells)} cells in a table of {len(header)} "
                            "columns; look for a missing quote"
                        )
                    yield line, record, raw.tell() / size
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
                    yield number, without_nulls(record), number / file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: cannot be read as parquet, after row {number}: {error}") from None


def without_nulls(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a table, whose columns hold every key that any record has: without the keys that
    the table has filled with null, below the columns themselves."""

    def cleared(value: Any) -> Any:
        if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
            value = dict(value)  # of the type map
        if isinstance(value, dict):
            return {key: cleared(item) for key, item in value.items() if item is not None}
        return [cleared(item) for item in value] if isinstance(value, list) else value

    return {name: cleared(value) for name, value in record.items()}


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a key that is there twice, one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has thousands of digits" if "digits" in str(error) else str(error)


def _object(value: Any, place: str) -> dict[str, Any] | DataError:
    if is_conversation(value):
        return {"messages": value}
    if isinstance(value, dict):
        return value
    return DataError(
        f"{place}: not a JSON object but {type(value).__name__}, {str(value)[:60]!r}; write "
        "one object per example"
    )


def _skip_space(text: str, place: int) -> int:
    while text[place : place + 1].isspace():
        place += 1
    return place
