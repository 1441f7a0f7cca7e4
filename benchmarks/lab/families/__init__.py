"""The families of tasks, a file each; `--family PATH.py` takes any other.

Settings of methods, learning rates among them, are chosen on the families in TUNING alone. What is
claimed of a method is claimed from those in REPORTING, on which nothing is chosen.

A family file has a module attribute FAMILY (benchmarks.lab.tasks.Family). It is found by its name
here, or by its path, and looked at before anything runs: `check` says what is asked of it. Its text
is part of the fingerprint of every result.
"""

import functools
from pathlib import Path

from adaptsft.config.user_code import errors_of
from adaptsft.errors import require_known
from benchmarks.lab import loading
from benchmarks.lab.families.check import check
from benchmarks.lab.tasks import Family

TUNING = (
    "letters",
    "facts",
    "numbers",
    "digits",
    "countries",
    "inflection",
    "dates",
    "pronunciation",
)
REPORTING = ("measures", "pinyin", "codons")
NAMES = (*TUNING, *REPORTING)


def path_of(entry: str) -> Path:
    """The file of a family: `entry` is one of NAMES, or a path that ends in .py. Raises
    ConfigError."""
    if entry.endswith(".py"):
        return Path(entry).expanduser().resolve()
    require_known(f"families: {entry!r} is not known, nor a file that ends in .py", entry, NAMES)
    return Path(__file__).with_name(f"{entry}.py")


@functools.cache
def find(entry: str) -> Family:
    """The family of a name or path; see `path_of`. Raises ConfigError."""
    path = path_of(entry)
    family = loading.attribute(path, "FAMILY")
    with errors_of(path):
        check(path, family)
    return family


@functools.cache
def source(entry: str) -> str:
    """The text of the family's file, read once in a process, as the family itself is."""
    return path_of(entry).read_text()
