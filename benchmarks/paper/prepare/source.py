"""Where the records of a training set come from: files, or the hub at a commit that is noted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi

from adaptsft.config.schema import DataConfig, SourceConfig
from adaptsft.data.files import EXTENSIONS, PATTERN, files_of
from adaptsft.data.sources import open_records
from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.openbookqa import Noise

Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One file of a set. `sample`: how many records of the source the seed draws, None for all."""

    file: str  # under --out
    hub: str = ""
    subset: str | None = None
    sample: int | None = None


@dataclass(frozen=True)
class Source:
    """An open source: what it is, for the provenance, and its records: place (for errors), record,
    share of the source read so far."""

    facts: Record
    records: Callable[[], Iterator[tuple[str, Record, float]]]


@dataclass(frozen=True)
class Options:
    """What the command line says; python -m benchmarks.paper.prepare documents each."""

    out: Path
    source: list[str] = field(default_factory=list)
    seed: int = 0
    sample: int | None = None
    limit: int | None = None
    suffix: str = ""
    tokenizer: list[str] = field(default_factory=list)
    max_tokens: int = 0
    noise: Noise = field(default_factory=Noise)
    generator: str = "own"
    allow_count: bool = False
    drop_broken: bool = False


def open_source(part: Part, number: int, options: Options) -> Source:
    """What a part is made of: its data set on the hub, or of --source the `number`th, or the only
    one if that has the part's subset. Raises DataError where it is not there, ConfigError where
    --source is not enough."""
    given = options.source[min(number, len(options.source) - 1)] if options.source else part.hub
    path = Path(given).expanduser()
    local = (
        path.exists()
        or PATTERN.search(given)
        or path.suffix in EXTENSIONS
        or given.startswith((".", "/", "~"))
    )
    if number >= len(options.source) > 0 and (not part.subset or (local and not path.is_dir())):
        raise ConfigError(
            f"--source {given}: this is one source, and {part.file} needs another ({part.hub}); "
            "name all, in the set's order"
        )
    if not local:
        name, _, revision = given.partition("@")
        return _hub(name, revision, part.subset)
    if part.subset and path.is_dir():
        path /= part.subset
        if not path.is_dir():
            raise ConfigError(
                f"--source {given}: there is no folder {path}; {part.hub} has one for each subset, "
                "and so must its copy"
            )
        given = str(path)
    cache = Path(DataConfig().cache_dir).expanduser()
    files = files_of(SourceConfig(path=given))
    opened = [open_records(SourceConfig(path=name), cache) for name in files]
    inputs = [
        {"path": name, "sha256" if Path(name).is_file() else "fingerprint": records.fingerprint}
        for name, records in zip(files, opened, strict=True)
    ]

    def records() -> Iterator[tuple[str, Record, float]]:
        for done, file in enumerate(opened):
            for place, record, share in file.read():
                if isinstance(record, DataError):
                    raise record
                yield f"{file.place}{place}", record, (done + share) / len(opened)

    return Source({"files": inputs}, records)


def _hub(name: str, revision: str, subset: str | None) -> Source:
    """The split "train" of a data set of the hub, at a commit or branch ("": the newest). Raises
    DataError."""
    try:
        commit = HfApi().dataset_info(name, revision=revision or None).sha
        table: Any = datasets.load_dataset(name, subset, split="train", revision=commit)
    except Exception as error:  # whatever the hub client raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"the hub does not give {name}: {reason}; where its page asks for it, log in and "
            "accept its terms, or download its files "
            "and name them by --source"
        ) from None
    place = f"{name}, {subset}" if subset else name

    def records() -> Iterator[tuple[str, Record, float]]:
        for number, record in enumerate(table, 1):
            yield f"{place}: record {number}", record, number / len(table)

    return Source({"hub": name, "subset": subset, "commit": commit}, records)
