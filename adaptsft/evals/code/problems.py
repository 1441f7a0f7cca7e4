"""HumanEval+ and MBPP+ (github.com/evalplus, Apache-2.0): files, versions, and typed inputs."""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError, DataError

# prefix of task ids -> prefix of files
FAMILIES = {"HumanEval": "HumanEvalPlus", "Mbpp": "MbppPlus"}
VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)$")

# of the published files: evalplus/humanevalplus_release and evalplus/mbppplus_release, as
# <name>.jsonl.gz of release <version>
_SHA256SUMS = """
91486741f1627101021fbe50523df08eebb5b0bf5e804b633dcd5ca3c14dbd2f  HumanEvalPlus-Mini-v0.1.10
272720b90ac375502c8ed23cd791c2a93dfb22a911641a494da74a426c09f101  HumanEvalPlus-v0.1.10
e62f4130146963d969da64553f407a66e52d095adbfed4ee6733b4d59e14a3ed  HumanEvalPlus-v0.1.9
57d639e77667d88930052b2b07212011c25c0bab94dfc1f19d15e1f7f558bfa9  MbppPlus-v0.1.0
af43697e8791c4c149bdfd6b489d8b5412507551ac20e28a439f650b8225db63  MbppPlus-v0.2.0
"""
PUBLISHED = {name: digest for digest, name in map(str.split, _SHA256SUMS.strip().splitlines())}


@dataclass(frozen=True)
class Problem:
    """A function to write.

    `base` and `plus` are lists of its tests, each the list of arguments of one call.
    """

    task_id: str
    entry_point: str
    reference: str  # a program whose function gives the expected outputs; third-party code
    base: list[Any]
    plus: list[Any]
    atol: float


@dataclass(frozen=True)
class Problems:
    """One version of a data set."""

    name: str  # HumanEvalPlus-v0.1.9
    by_id: dict[str, Problem]


def load(family: str, data_dir: Path, versions: Iterable[str] = ()) -> Problems:
    """The data set of a family (HumanEval, Mbpp) in `data_dir` or data_dir/code.

    That is its newest version, or the one that `versions` names. A version is v0.1.9 or a file's
    name without its ending (HumanEvalPlus-Mini-v0.1.10; the mini set is only taken by its name).
    Raises ConfigError where there is none or not that one; DataError where the file is damaged or
    is not the published one.
    """
    prefix = FAMILIES[family]
    found: dict[str, Path] = {}
    for folder in (data_dir / "code", data_dir):
        paths = folder.glob(f"{prefix}-*.jsonl.gz")
        found |= {path.name.removesuffix(".jsonl.gz"): path for path in paths}
    if not found:
        raise ConfigError(
            f"--data-dir {data_dir}: no {prefix}-….jsonl.gz in it or in its folder `code`; the "
            f"releases are at github.com/evalplus/{prefix.lower()}_release, and the version "
            f"belongs into the name: {prefix}-v….jsonl.gz"
        )
    # without subsets such as HumanEvalPlus-Mini
    full = {name.rpartition("-")[2]: name for name in found if _is_full(name, prefix)}
    wanted = list(versions)
    if wanted:
        chosen = [name for name in found if name in wanted]
        chosen = chosen or [full[version] for version in full if version in wanted]
    else:
        chosen = sorted(full.values(), key=_version)[-1:]
    if len(chosen) != 1:
        raise ConfigError(
            f"--version {' '.join(wanted) or '(none)'}: names {len(chosen)} versions of {prefix}; "
            f"choose one of {', '.join(sorted(found))}"
        )
    return _read(chosen[0], found[chosen[0]])


def _is_full(name: str, prefix: str) -> bool:
    version = name.removeprefix(f"{prefix}-")
    return VERSION.fullmatch(version) is not None


def _version(name: str) -> tuple[int, ...]:
    match = VERSION.search(name)
    return tuple(int(part) for part in match.groups()) if match else ()


def _read(name: str, path: Path) -> Problems:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != PUBLISHED.get(name, digest):
        raise DataError(
            f"{path}: its sha256 is {digest}, the published file's is {PUBLISHED[name]}: damaged, "
            "or not that version"
        )
    by_id = {}
    try:
        for line in gzip.decompress(content).decode().splitlines():
            record = json.loads(line)
            read = MBPP_INPUTS.get(record["task_id"], list)
            by_id[record["task_id"]] = Problem(
                record["task_id"],
                record["entry_point"],
                record["prompt"] + record["canonical_solution"],
                [read(arguments) for arguments in record["base_input"]],
                [read(arguments) for arguments in record["plus_input"]],
                record["atol"],
            )
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}, problem {len(by_id) + 1}: cannot be read: {type(error).__name__}: {error}; "
            "fetch it again"
        ) from None
    return Problems(name, by_id)


# JSON has no tuples, sets or complex numbers. What the arguments of an MBPP problem were is only
# known by its number: evalplus 0.3.1, evalplus/data/mbpp.py, mbpp_deserialize_inputs.


def _nested(value: Any) -> Any:
    return tuple(_nested(item) for item in value) if isinstance(value, list) else value


def _tuples(values: list[Any]) -> list[Any]:
    return [tuple(value) for value in values]


def _each_of_tuples(arguments: list[Any]) -> list[Any]:
    return [_tuples(argument) for argument in arguments]


_MBPP_RULES: list[tuple[str, Callable[[list[Any]], list[Any]]]] = [
    ("2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740", _tuples),
    ("744 809", _tuples),
    ("63 64 70 94 120 237 272 299 400 409 417 438 473 614 780", _each_of_tuples),
    ("75 413 444 753", lambda a: [_tuples(a[0]), a[1]]),
    ("106 750", lambda a: [a[0], tuple(a[1])]),
    ("115", lambda a: [[set(i) if isinstance(i, list) and i else {} for i in a[0]]]),
    ("124", lambda a: [float(a[0]), complex(a[1])]),
    ("250 405 446 617 720 763 808", lambda a: [tuple(a[0]), a[1]]),
    ("252", lambda a: [complex(a[0])]),
    ("259 401 445", lambda a: [tuple(_tuples(argument)) for argument in a]),
    ("278", lambda a: [tuple(tuple(i) if isinstance(i, list) else i for i in a[0])]),
    ("307", lambda a: [tuple(a[0]), a[1], a[2]]),
    ("580 615 791", lambda a: [_nested(argument) for argument in a]),
    ("722", lambda a: [{key: tuple(value) for key, value in a[0].items()}, *a[1:]]),
]
MBPP_INPUTS = {
    f"Mbpp/{number}": rule for numbers, rule in _MBPP_RULES for number in numbers.split()
}
