"""From a source (files, the hub, a generator) to files that adaptsft.train reads without a field
map, and a record of how they came about.

Nothing is held but what a decision needs: 16 bytes a record for a sample, and the ids of the
records that are written. A sample takes two passes. Files appear under their names when all of them
are complete.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer

from adaptsft.config.schema import DataConfig
from adaptsft.data.layout import Layout
from adaptsft.data.template import Template
from adaptsft.errors import ConfigError, DataError
from adaptsft.training.environment import environment
from benchmarks.paper.prepare.sets import Convert, TrainingSet
from benchmarks.paper.prepare.source import Options, Part, Record, Source

BATCH = 256  # records per call of a tokenizer
SHOWN = 20  # broken records named in the provenance


@dataclass
class Pass:
    """One reading of a source, converted; a record's number is its place in it, from 1. A broken
    record is an error, or with --drop-broken a message in `broken`."""

    source: Source
    convert: Convert
    options: Options
    title: str
    read: int = 0
    broken: list[str] = field(default_factory=list)

    def records(self) -> Iterator[tuple[int, Record]]:
        layout = "{desc}: {percentage:3.0f}% |{bar}| [{elapsed}<{remaining}{postfix}]"
        with tqdm(total=1.0, desc=self.title, bar_format=layout, mininterval=1.0) as bar:
            for place, record, share in self.source.records():
                if self.read == self.options.limit:
                    break
                self.read += 1
                if self.read % 100 == 0:
                    bar.set_postfix_str(f"{self.read:,} records", refresh=False)
                    bar.update(share - bar.n)
                try:
                    converted = self.convert(record)
                except DataError as error:
                    if not self.options.drop_broken:
                        raise DataError(
                            f"{place}: {error}. To leave such records out, and count them: "
                            "--drop-broken"
                        ) from None
                    self.broken.append(f"{place}: {error}")
                    continue
                yield self.read, converted
            bar.update(1.0 - bar.n)


def draw(records: Iterable[tuple[int, Record]], size: int, seed: int) -> set[int]:
    """The numbers of the `size` records whose hash of seed and content is lowest: a uniform sample
    without replacement that depends on neither the order of the records nor how they are cut into
    files, and that grows with `size` by adding records."""
    numbers, keys = array("Q"), array("Q")
    for number, record in records:
        digest = hashlib.blake2b(
            json.dumps(record, sort_keys=True).encode(), digest_size=8, key=str(seed).encode()
        )
        numbers.append(number)
        keys.append(int.from_bytes(digest.digest(), "big"))
    lowest = np.argsort(np.frombuffer(keys, dtype=np.uint64), kind="stable")[:size] if keys else []
    return {numbers[index] for index in lowest}


class LengthFilter:
    """Keeps records of at most `limit` tokens under every tokenizer, counted as adaptsft.train
    counts them."""

    def __init__(self, tokenizers: list[str], limit: int) -> None:
        """Raises ConfigError where a tokenizer cannot be loaded."""
        self.limit, self.templates = limit, []
        for name in tokenizers:
            try:
                tokenizer: Any = AutoTokenizer.from_pretrained(name)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"--tokenizer {name}: cannot be loaded: "
                    f"{(str(error) or type(error).__name__).splitlines()[0]}"
                ) from None
            self.templates.append(Template(tokenizer, DataConfig()))

    def keeps(self, records: list[Record]) -> list[bool]:
        conversations = [Layout.of(record, {}).conversation(record) for record in records]
        longest = np.zeros(len(records), dtype=np.int64)
        for template in self.templates:
            examples = [template.examples(conversation)[0] for conversation in conversations]
            encoded = template.encoder.encode(examples)
            longest = np.maximum(longest, [len(ids) for ids, _ in encoded])
        return (longest <= self.limit).tolist()


class Written:
    """A file being written: records with ids that are all different, and the hash of its bytes."""

    def __init__(self, final: Path) -> None:
        self.final, self.partial = final, final.with_name(final.name + ".tmp")
        self.ids: set[str] = set()
        self.digest = hashlib.sha256()
        final.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.partial, "wb")  # noqa: SIM115

    def add(self, record: Record) -> None:
        if record["id"] in self.ids:
            raise DataError(
                f"{self.final}: two records have the id {record['id']!r}; is a file of the source "
                "there "
                "twice?"
            )
        self.ids.add(record["id"])
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        self.digest.update(line)
        self.file.write(line)

    def close(self) -> None:
        if not self.file.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()


def write_part(
    part: Part,
    source: Source,
    convert: Convert,
    short: LengthFilter | None,
    options: Options,
    out: Written,
) -> Record:
    """Write a part, and return its provenance: what was read, drawn, dropped and kept."""
    sample = (options.sample or part.sample) if part.sample else None
    chosen: set[int] | None = None
    if sample is not None:
        chosen = draw(
            Pass(source, convert, options, f"{part.file}, drawing").records(), sample, options.seed
        )
    reading = Pass(source, convert, options, part.file)
    drawn = (
        (number, record)
        for number, record in reading.records()
        if chosen is None or number in chosen
    )
    stem, too_long, kept = Path(part.file).stem, 0, 0
    while batch := list(islice(drawn, BATCH)):
        for _, record in batch:
            if options.suffix and not record["prompt"].endswith(
                options.suffix
            ):  # after the drawing: another suffix is no other sample
                record["prompt"] += options.suffix
        keeps = short.keeps([record for _, record in batch]) if short else [True] * len(batch)
        for (number, record), keep in zip(batch, keeps, strict=True):
            if keep:
                # a generated record has an id of its own
                out.add({"id": f"{stem}-{number}"} | record)
        kept += sum(keeps)
        too_long += len(keeps) - sum(keeps)
    if not kept:
        raise DataError(
            f"{part.file}: no record is left of the {reading.read:,} that were read; see "
            "--max-tokens "
            "and --sample"
        )
    out.close()
    dropped = {"broken": len(reading.broken), "too_long": too_long}
    if chosen is not None:
        dropped["not_drawn"] = reading.read - len(reading.broken) - len(chosen)
    return {
        "file": part.file,
        "source": source.facts,
        "read": reading.read,
        "dropped": dropped,
        "kept": kept,
        "sha256": out.digest.hexdigest(),
        "broken_records": reading.broken[:SHOWN],
    }


def check_count(read: int, published: tuple[int, int], options: Options) -> str | None:
    """Whether as many records were read as the set is known to have: another number means another
    version, or half a download, and other results. Returns a warning where that is allowed, by
    --allow-count or, a trial, by --limit. Raises DataError."""
    low, high = published
    if low <= read <= high:
        return None
    known = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    warning = f"{read:,} records were read, and the published set has {known}"
    if options.limit is None and not options.allow_count:
        raise DataError(
            f"{warning}: another version of it, or not all of it. Nothing was written; to go on "
            "all the same: --allow-count"
        )
    return warning


def prepare(chosen: TrainingSet, options: Options) -> Record:
    """Write the parts of a set and its provenance, all or nothing. Returns the provenance. Raises
    DataError, and ConfigError."""
    short = LengthFilter(options.tokenizer, options.max_tokens) if options.max_tokens else None
    sources = [chosen.open(part, number, options) for number, part in enumerate(chosen.parts)]
    files: list[Written] = []
    done: list[Record] = []
    try:
        for part in chosen.parts:
            files.append(Written(options.out / part.file))
        for part, source, out in zip(chosen.parts, sources, files, strict=True):
            done.append(write_part(part, source, chosen.convert, short, options, out))
        warning = check_count(sum(part["read"] for part in done), chosen.records, options)
        for out in files:
            os.replace(out.partial, out.final)
    except OSError as error:
        raise ConfigError(f"--out {options.out}: cannot be written: {error}") from None
    finally:
        for out in files:
            out.file.close()
            out.partial.unlink(missing_ok=True)
    run = environment()
    facts = {
        "set": chosen.name,
        "read": sum(part["read"] for part in done),
        "kept": sum(part["kept"] for part in done),
        "warning": warning,
        "parts": done,
        "arguments": asdict(options) | {"out": str(options.out)},
        "command": run["command"],
        "versions": run["versions"],
    }
    record = (
        options.out
        / f"{Path(chosen.parts[0].file).stem if len(chosen.parts) == 1 else chosen.name}.json"
    )
    partial = record.with_name(record.name + ".tmp")
    partial.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, record)
    return facts
