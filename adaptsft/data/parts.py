"""A stream: the files of a set that is too large for the disk once tokenised, in parts of `data.stream` files.

Pass e over the files is a permutation, seeded by (seed, e) and cut into parts of nearly the same number of files. Parts are counted over
all passes. Which files a part has is so a pure function of its number; at which step it begins follows from the parts before it.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from adaptsft.config import Config, DataConfig
from adaptsft.data.remote import is_remote, list_remote
from adaptsft.data.sources import files_of, training_sources
from adaptsft.errors import ConfigError

Listing = list[tuple[str, int]]  # path or URL, bytes


@dataclass(frozen=True)
class Part:
    number: int  # from 0, over all passes
    per_pass: int  # parts in a pass
    first: int  # step (0-based) with which it begins
    files: list[str]
    cache: Path  # folder of its tokens, and of copies of its files where they are remote; nothing else is in it
    listing: str  # fingerprint of all files of the stream, by name and size


def list_files(config: DataConfig) -> Listing:
    """All files of the stream, sorted. Raises DataError where there is none, and ConfigError where data.path is a name on the hub."""
    if is_remote(config.path):
        return list_remote(config.path)
    (source,) = training_sources(config)
    paths = [Path(name).expanduser() for name in files_of(source)]
    if len(paths) == 1 and not paths[0].is_file():
        raise ConfigError(
            f"data.stream={config.stream}: data.path={config.path} is neither files here nor a URL; name the files of a data set on the "
            "hub by a pattern, such as hf://datasets/ORG/NAME/data/train-*.parquet"
        )
    return [(str(path), path.stat().st_size) for path in paths]


def folder_of(config: Config) -> Path:
    """Where the parts of a run are tokenised: no two runs share it, as each deletes what it has learned."""
    run = hashlib.sha256(str(Path(config.run_dir).expanduser().absolute()).encode()).hexdigest()[:16]
    return Path(config.data.cache_dir).expanduser() / f"stream-{run}"


def cut(config: Config, listing: Listing, number: int, first: int) -> Part:
    """Part `number`, if it begins with step `first`."""
    per_pass = math.ceil(len(listing) / config.data.stream)
    turn, place = divmod(number, per_pass)
    # a spawn key of its own: the order of files has nothing to do with that of a part's examples
    order = np.random.default_rng(np.random.SeedSequence([config.seed, turn], spawn_key=(2,))).permutation(len(listing))
    files = [listing[i][0] for i in np.array_split(order, per_pass)[place].tolist()]
    names = json.dumps([(PurePosixPath(path).name, size) for path, size in listing])
    return Part(number, per_pass, first, files, folder_of(config) / f"part_{number:06d}", hashlib.sha256(names.encode()).hexdigest())
