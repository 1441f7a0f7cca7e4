"""The files of one task in one mode of decoding.

run.json (the settings), items.jsonl, samples*.jsonl (append-only), scored.jsonl, result.json.
Samples are keyed by a hash of all that decides them, so that none is generated twice or taken for a
sample of other settings. A process that is killed leaves at most one incomplete line, its last,
which is dropped.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adaptsft.errors import DataError
from adaptsft.files import write_atomically


def to_json(value: Any, **options: Any) -> str:
    """As json.dumps, in UTF-8's characters: lone surrogates, which UTF-8 lacks, are escapes.

    They come from servers that cut an answer inside an emoji, and are read back as they were.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    return text.encode(errors="backslashreplace").decode()  # as JSON escapes them


def digest(*parts: Any) -> str:
    return hashlib.sha256(to_json(parts, sort_keys=True).encode()).hexdigest()


def seed_of(run_seed: int, task: str, item_id: str, sample: int) -> int:
    """A seed of its own for every sample, below 2^31 since servers take no larger ones."""
    return int(digest(run_seed, task, item_id, sample)[:8], 16) >> 1


def folders(out: Path) -> list[Path]:
    """Every task-and-mode folder below `out`, which may itself be one."""
    return sorted(path.parent for path in out.rglob("run.json"))


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, to_json(value, indent=1) + "\n")


def write_lines(path: Path, records: Iterable[Any]) -> None:
    write_atomically(path, "".join(map(_line, records)))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def read_lines(
    path: Path, hint: str = "remove this line, and it is generated again"
) -> tuple[list[Any], int]:
    """The records of a JSON-lines file, and the bytes that they take.

    A last line without its end was cut off by a crash, and is left out. Raises DataError for
    another that is damaged, with the `hint` at what helps.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    complete = content[: content.rfind(b"\n") + 1]
    records = []
    for number, line in enumerate(complete.split(b"\n")[:-1], 1):
        try:
            if line.strip():
                records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}): the file is damaged; {hint}"
            ) from None
    return records, len(complete)


def keep(records: dict[str, dict[str, Any]], record: dict[str, Any]) -> None:
    """Of samples with one key the last one counts, and one with an error only for want of
    another."""
    before = records.get(record["key"])
    if before is None or before.get("error") or not record.get("error"):
        records[record["key"]] = record


class Samples:
    """The samples of a folder: those that any rank has written, and this rank's file to add to."""

    def __init__(self, folder: Path, rank: int = 0, name: str = "samples") -> None:
        self.file = folder / f"{name}.rank{rank}.jsonl"
        self.records: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob(f"{name}.rank*.jsonl")):
            records, complete = read_lines(path)
            for record in records:
                self._keep(record, path)
            if path == self.file and complete < path.stat().st_size:
                os.truncate(path, complete)

    def add(self, records: list[dict[str, Any]]) -> None:
        """On disk when this returns."""
        with self.file.open("a") as file:
            file.writelines(map(_line, records))
            file.flush()
            os.fsync(file.fileno())
        for record in records:
            self._keep(record, self.file)

    def _keep(self, record: Any, path: Path) -> None:
        if not isinstance(record, dict) or not isinstance(record.get("key"), str):
            raise DataError(
                f"{path}: {to_json(record)[:80]} is no sample, it has no `key`: remove this line, "
                "or name another --out"
            )
        keep(self.records, record)


def _line(record: Any) -> str:
    return to_json(record) + "\n"
