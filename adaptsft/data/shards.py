"""A stream: the files of a set that is too large for the disk once tokenised, in shards of `data.stream` files.

Pass e over the files is a permutation, seeded by (seed, e) and cut into shards of nearly the same number of files. Parts are counted over
all passes. Which files a shard has is so a pure function of its number; at which step it begins follows from the parts before it.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaptsft.config.schema import Config, DataConfig
from adaptsft.data.remote import is_remote, list_remote
from adaptsft.data.sources import files_of, training_sources
from adaptsft.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    number: int  # from 0, over all passes
    per_pass: int  # shards in a pass
    first: int  # step (0-based) with which it begins
    files: list[str]
    cache: Path  # folder of its tokens, and of copies of its files where they are remote; nothing else is in it
    listing: str  # fingerprint of the names of all files of the stream, on which its parts depend


def list_files(config: DataConfig) -> list[str]:
    """Paths or URLs of all files of the stream, sorted. Raises DataError where there is none, ConfigError for a name on the hub."""
    if is_remote(config.path):
        return list_remote(config.path)
    (source,) = training_sources(config)
    files = files_of(source)
    if len(files) == 1 and not Path(files[0]).expanduser().is_file():
        raise ConfigError(
            f"data.stream={config.stream}: data.path={config.path} is neither files here nor a URL; name the files of a data set on the "
            "hub by a pattern, such as hf://datasets/ORG/NAME/data/train-*.parquet"
        )
    return files


def folder_of(config: Config) -> Path:
    """Where the shards of a run are tokenised: no two runs share it, as each deletes what it has learned."""
    run = hashlib.sha256(str(Path(config.run_dir).expanduser().absolute()).encode()).hexdigest()[
        :16
    ]
    return Path(config.data.cache_dir).expanduser() / f"stream-{run}"


def cut(config: Config, files: list[str], number: int, first: int) -> Shard:
    """Shard `number` of a stream of these files, if it begins with step `first`."""
    per_pass = math.ceil(len(files) / config.data.stream)
    turn, place = divmod(number, per_pass)
    # a spawn key of its own: the order of files has nothing to do with that of a shard's examples
    order = np.random.default_rng(
        np.random.SeedSequence([config.seed, turn], spawn_key=(2,))
    ).permutation(len(files))
    mine = [files[i] for i in np.array_split(order, per_pass)[place].tolist()]
    listing = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return Shard(number, per_pass, first, mine, folder_of(config) / f"part_{number:06d}", listing)
