"""The files of one task in one mode: run.json (what was asked), items.jsonl, samples*.jsonl
(append-only), scored.jsonl, result.json.

Samples are keyed by a hash of all that decides them, so that what is there is never generated again
and never taken for something else. A process that is killed leaves at most one torn line, its last,
which is dropped.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adaptsft.errors import DataError


def digest(*parts: Any) -> str:
    return hashlib.sha256(
        json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def seed_of(run_seed: int, task: str, item_id: str, sample: int) -> int:
    """A seed of its own for every sample, below 2^31 since servers take no larger ones."""
    return int(digest(run_seed, task, item_id, sample)[:8], 16) >> 1


def folders(out: Path) -> list[Path]:
    """Every task-and-mode folder below `out`, which may itself be one."""
    return sorted(path.parent for path in out.rglob("run.json"))


def write_json(path: Path, value: Any) -> None:
    """Atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    temporary.rename(path)


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.rename(path)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def read_lines(path: Path) -> tuple[list[Any], int]:
    """The rows of a JSON-lines file, and the bytes they take: a last line without its end was torn
    by a crash, and is not among them.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    whole = content[: content.rfind(b"\n") + 1]
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}): the file is damaged; remove this line, and "
                "it is generated again"
            ) from None
    return rows, len(whole)


class Samples:
    """The samples of a folder: those that any rank has written, and this rank's file to add to."""

    def __init__(self, folder: Path, rank: int = 0, name: str = "samples") -> None:
        self.file = folder / f"{name}.rank{rank}.jsonl"
        self.rows: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob(f"{name}.rank*.jsonl")):
            rows, whole = read_lines(path)
            self.rows |= {row["key"]: row for row in rows}
            if path == self.file and whole < path.stat().st_size:
                os.truncate(path, whole)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """On disk when this returns."""
        with self.file.open("a") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {row["key"]: row for row in rows}
