"""Which files make up a source, and whether they are there. Nothing slow is imported for it: a
command answers a misspelt path at once."""

import difflib
import glob
import os
import re
from dataclasses import replace
from pathlib import Path

from adaptsft.config.schema import DataConfig, SourceConfig
from adaptsft.errors import ConfigError, DataError

# of data files; in a folder .json is often about the data, not data
EXTENSIONS = (".json", ".jsonl", ".parquet", ".csv")
COMPRESSED = ".gz"  # may follow each of them but .parquet, which compresses its own columns
PATTERN = re.compile(r"[*?\[]")
# words in the names of files that are not for training
HELD_BACK = re.compile(
    r"(?<![a-z])(test|testing|dev|val|valid|validation|eval|evaluation)(?![a-z])", re.IGNORECASE
)


def check_data_files(config: DataConfig) -> None:
    """Raise the DataError that opening the data would raise where a local file, folder or pattern
    is missing. Names on the hub and the files behind a URL are not looked up."""
    sources = training_sources(config) if config.path or config.sources else []
    if config.validation_path:
        sources.append(validation_source(config))
    for source in sources:
        if is_remote(source.path) and config.stream:
            continue
        for path in files_of(source):
            local_file(path)


def training_sources(config: DataConfig) -> list[SourceConfig]:
    """The configured sources, each with a name. Raises ConfigError where two have the same."""
    sources = config.sources or [
        SourceConfig(
            path=config.path, subset=config.subset, split=config.split, fields=config.fields
        )
    ]
    named = [replace(source, name=source.name or default_name(source.path)) for source in sources]
    for number, source in enumerate(named):
        if source.name in [other.name for other in named[:number]]:
            raise ConfigError(
                f"data.sources[{number}].name={source.name}: another source has this name; give "
                "each its own name"
            )
    return named


def validation_source(config: DataConfig) -> SourceConfig:
    """data.validation_path, read with the field map of the first training source."""
    path, first = config.validation_path, training_sources(config)[0]
    return replace(
        SourceConfig(default_name(path), path, split=config.validation_split),
        fields=first.fields,
        loss_on=first.loss_on,
    )


def default_name(path: str) -> str:
    """train.jsonl -> train, data/train-*.jsonl -> train, shards/*.jsonl -> shards."""
    if PATTERN.search(path) and not Path(path).expanduser().exists():
        parts = [
            re.split(r"[*?\[]", part)[0].strip("-_. ") for part in Path(path).with_suffix("").parts
        ]
        return next((part for part in reversed(parts) if part.strip("/")), path)
    return Path(_uncompressed(Path(path))).stem if kind_of(Path(path)) else Path(path).name


def kind_of(path: Path) -> str:
    """The extension that says how a file is read, "" for another."""
    suffix = Path(_uncompressed(path)).suffix
    compressed = path.suffix == COMPRESSED
    return suffix if suffix in EXTENSIONS and not (compressed and suffix == ".parquet") else ""


def _uncompressed(path: Path) -> str:
    return path.name.removesuffix(COMPRESSED)


def is_remote(path: str) -> bool:
    return "://" in path


def files_of(source: SourceConfig) -> list[str]:
    """The paths of the files that make up a source, sorted: those that a pattern matches, or the
    data files in a folder. Anything else stands for itself, and so does a folder in which
    `datasets` must tell splits apart. Raises DataError where a pattern matches nothing."""
    if is_remote(source.path):
        raise DataError(
            f"{source.path}: URLs are read for training with data.stream (files per shard) only; "
            "else download the files"
        )
    path = Path(source.path).expanduser()
    if PATTERN.search(source.path) and not path.exists():
        names = glob.glob(str(path), recursive=True)
        if not (found := sorted(name for name in names if Path(name).is_file())):
            raise DataError(f"{source.path}: no file matches this pattern")
        return found
    if path.is_dir() and source.split == "train":
        found = sorted(
            str(file)
            for file in path.iterdir()
            if kind_of(file) in EXTENSIONS[1:] and file.is_file()
        )
        if not any(HELD_BACK.search(Path(name).stem) for name in found):
            return found or [source.path]
    return [source.path]


def local_file(name: str) -> Path | None:
    """The data file of this name, or None where it is a folder or a name on the hub.

    Raises DataError for a file that is empty or of an unknown kind, and for a name that looks like
    a path but does not exist.
    """
    path = Path(name).expanduser()
    if path.is_file():
        check_kind(path, name)
        return path
    if kind_of(path) or (name.startswith((".", "/", "~")) and not path.is_dir()):
        raise DataError(f"{name}: no such file{_nearest(path)}")
    return None


def check_kind(path: Path, name: str) -> None:
    """Raise DataError, naming the file `name`, unless it has a known extension and is not empty."""
    if not kind_of(path):
        known = ", ".join(EXTENSIONS)
        raise DataError(
            f"{name}: unknown extension {path.suffix!r}; data files are {known}, all but .parquet "
            f"also with {COMPRESSED} after it"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty")


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
