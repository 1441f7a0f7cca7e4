"""From a task's sources to its items: found, hashed, counted and mapped.

Data that differs from what the task's file names is refused.
"""

import codecs
import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.graders.registry import GRADERS
from adaptsft.evals.prompts import problem_of
from adaptsft.evals.readers import READERS, Record, generate_records
from adaptsft.evals.samples import to_json
from adaptsft.evals.tasks import Source, Task

# beside the answer, what those read that are no GRADERS
OTHERS_READ = {"code": ("task_id", "question"), "judge": ("instruction", "dataset")}


class Item(NamedTuple):
    """One question.

    `fields` hold what the prompt names and what graders read (`gold`, `options`, …).
    """

    id: str
    fields: Record


@dataclass(frozen=True)
class Items:
    items: list[Item]
    # of all mapped items of the task: the same whether they came from a file or the hub
    sha256: str
    origin: str
    verified: bool  # the data has the hash of the published data

    def facts(self) -> Record:
        return {"sha256": self.sha256, "origin": self.origin, "verified": self.verified}


def load_items(task: Task, data_dir: Path | None = None) -> Items:
    """Every item of a task.

    Raises DataError where the data cannot be found, its sha256 or number is not the task's, or a
    record lacks a field; ConfigError where a library is missing, or the prompt or a grader of the
    task reads what the items lack.
    """
    source, records = _open(task, data_dir)
    read, where = READERS[source.reader], source.file or source.hub or source.generator
    items, seen = [], set()
    for number, record in enumerate(records):
        mapped = {ours: record[name] for ours, name in source.fields.items() if name in record}
        try:
            fields = read(record | mapped)
            item = Item(str(fields.pop("id", number)), fields)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{task.name}: {where}, record {number + 1}: {reason}; the record has "
                f"{', '.join(record)}"
            ) from None
        items.append(Item(f"{item.id}-{number}", fields) if item.id in seen else item)
        seen.add(item.id)
    if len(items) != task.items:
        raise DataError(
            f"{task.name}: {where} has {len(items)} items, the task names {task.items}: is it "
            "another version of the data?"
        )
    _check(task, items[0])
    content = to_json(items, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()
    if not source.file and source.sha256 is not None and digest != source.sha256:
        raise DataError(
            f"{task.name}: the items of {where} have the sha256 {digest}, the task names "
            f"{source.sha256}: other data"
        )
    origin = f"{where} ({source.origin})" if source.origin else where
    return Items(items, digest, origin, source.verified)


def _check(task: Task, item: Item) -> None:
    """Raises ConfigError where the prompt or a grader reads what an item lacks."""
    if problem := problem_of(task.prompt, item.fields):
        raise ConfigError(f"{task.name}: {problem}")
    record = task.grading | item.fields | {"response": "", "output": ""}
    for name in task.graders:
        try:
            if name in GRADERS:
                GRADERS[name].check(record)
            elif missing := [key for key in OTHERS_READ[name] if key not in item.fields]:
                raise DataError(f"{name} reads {', '.join(missing)}")
        except DataError as error:
            raise ConfigError(
                f"{task.name}: graders: {error} (item {item.id!r}): choose another grader, or "
                "name the field under sources.fields"
            ) from None


def _open(task: Task, data_dir: Path | None) -> tuple[Source, Iterator[Record]]:
    """The first source that is available, and its records."""
    for source in task.sources:
        if source.generator:
            return source, generate_records(source.generator)
        if data_dir is not None and source.file and (path := data_dir / source.file).is_file():
            return source, _file_records(path, source, task)
    if data_dir is not None:
        wanted = [
            f"{data_dir / source.file} ({source.origin or source.hub})"
            for source in task.sources
            if source.file
        ]
        raise DataError(
            f"{task.name}: found none of its files under --data-dir: "
            f"{'; '.join(wanted) or 'the task names none'}"
        )
    for source in task.sources:
        if source.hub_file:
            from huggingface_hub import hf_hub_download

            try:
                path = hf_hub_download(
                    source.hub, source.hub_file, repo_type="dataset", revision=source.revision
                )
            except Exception as error:  # the hub's client raises many kinds
                raise _unreachable(task, source, error) from None
            return source, _file_records(Path(path), source, task)
        if source.hub:
            import datasets

            try:
                records = datasets.load_dataset(
                    source.hub, source.subset, split=source.split, revision=source.revision
                )
            except Exception as error:
                raise _unreachable(task, source, error) from None
            return source, iter(records)  # type: ignore[arg-type]
    files = ", ".join(f"{source.file} from {source.origin}" for source in task.sources)
    raise DataError(
        f"{task.name}: its data is not on the hub: fetch {files} and name the folder by --data-dir"
    )


def _unreachable(task: Task, source: Source, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    fix = "Log in"
    if task.gated:
        fix += " after asking its owners for access"
    if files := " or ".join(source.file for source in task.sources if source.file):
        fix += f", or fetch {files} and name its folder by --data-dir"
    return DataError(f"{task.name}: the hub does not give {source.hub}: {reason}. {fix}")


def _file_records(path: Path, source: Source, task: Task) -> Iterator[Record]:
    """The records of a .jsonl, .jsonl.gz, .json, .tsv or .parquet file.

    Raises DataError where its sha256 is not the source's.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if source.sha256 is not None and digest != source.sha256:
        raise DataError(
            f"{task.name}: {path} has the sha256 {digest}, the task names {source.sha256}: "
            "another version, or damaged"
        )
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return iter(pq.read_table(path).to_pylist())
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if path.suffix == ".tsv":
        header, *lines = (line.split("\t") for line in text.splitlines())
        return iter([dict(zip(header, line, strict=False)) for line in lines])
    if path.suffix == ".json":
        values = _parse(text, str(path))
        if source.key:
            if source.key not in _object(values, str(path)):
                raise DataError(f"{path}: no {source.key!r} in it, but {', '.join(values)}")
            values = values[source.key]
        if isinstance(values, dict):
            values = [
                {"id": key} | _object(value, f"{path}, {key!r}") for key, value in values.items()
            ]
        if not isinstance(values, list):
            raise DataError(f"{path}: a list or object of records is needed, not {values!r:.80}")
        return iter([_object(value, f"{path}, record {i}") for i, value in enumerate(values, 1)])
    lines = enumerate(text.split("\n"), 1)  # U+2028 and others are part of a line
    places = ((line, f"{path}:{number}") for number, line in lines if line.strip())
    return iter([_object(_parse(line, place), place) for line, place in places])


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {error}") from None


def _object(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a JSON object is needed, not {value!r:.80}")
    return value
