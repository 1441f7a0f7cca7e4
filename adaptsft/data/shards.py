"""A stream: the files of a set that is too large for the disk once tokenised, in shards of
`data.stream` files.

Pass e over the files is a permutation, seeded by (seed, e) and cut into shards of nearly the same
number of files. Shards are counted over all passes. Which files a shard has is a pure function of
its number; at which step it begins follows from the shards before it.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adaptsft.config.schema import Config, DataConfig
from adaptsft.data.files import files_of, is_remote, training_sources
from adaptsft.data.remote import list_remote
from adaptsft.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    number: int  # from 0, over all passes
    per_pass: int  # shards in a pass
    first: int  # step (0-based) with which it begins
    files: list[str]
    # folder of its tokens, and of copies of its files where they are remote; nothing else is in it
    cache: Path
    listing: str  # fingerprint of the names of all files of the stream, on which its shards depend


def list_files(config: DataConfig) -> list[str]:
    """Paths or URLs of all files of the stream, sorted. Raises DataError where there is none,
    ConfigError for a name on the hub."""
    if is_remote(config.path):
        return list_remote(config.path)
    (source,) = training_sources(config)
    files = files_of(source)
    if len(files) == 1 and not Path(files[0]).expanduser().is_file():
        raise ConfigError(
            f"data.stream={config.stream}: data.path={config.path} is neither files here nor a "
            "URL; name the files of a data set on the hub by a pattern, such as "
            "hf://datasets/ORG/NAME/data/train-*.parquet"
        )
    return files


def folder_of(config: Config) -> Path:
    """Where the shards of a run are tokenised: no two runs share it, as each deletes the shards
    that it has trained on."""
    run = str(Path(config.run_dir).expanduser().absolute()).encode()
    name = f"stream-{hashlib.sha256(run).hexdigest()[:16]}"
    return Path(config.data.cache_dir).expanduser() / name


def cache_name(number: int) -> str:
    """The folder of a shard. Shards were once called parts: a run that was begun then finds its
    folders again."""
    return f"part_{number:06d}"


def make_shard(config: Config, files: list[str], number: int, first: int) -> Shard:
    """Shard `number` of a stream of these files, if it begins with step `first`."""
    per_pass = math.ceil(len(files) / config.data.stream)
    turn, place = divmod(number, per_pass)
    # a spawn key of its own: the order of files has nothing to do with that of a shard's examples
    random = np.random.default_rng(np.random.SeedSequence([config.seed, turn], spawn_key=(2,)))
    order = random.permutation(len(files))
    mine = [files[i] for i in np.array_split(order, per_pass)[place].tolist()]
    listing = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return Shard(number, per_pass, first, mine, folder_of(config) / cache_name(number), listing)
