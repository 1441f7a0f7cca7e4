"""Every type of transformers' causal language models, tiny and random, against transformers itself.

    python -m tests.model_types [--only TYPE …]            try them, and show what differs from
                                                           adaptsft/model/verified.json
    python -m tests.model_types --write [--only TYPE …]    and write it there, and docs/models.md

The first variant of each type is compiled too, up to a minute each; with --no-compile none is, and
what was found before stays.

    python -m tests.model_types --trained [--write] [--only TYPE …]

One variant of each type that is trained, by real runs on one rank and on two instead (half a
minute each): the other columns stay. What is written is written type by type.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from adaptsft.distributed.ranks import process_group
from adaptsft.model.__main__ import TRAINED
from adaptsft.model.supported import FILE
from tests.conftest import REPO
from tests.model_types.measure import measure
from tests.model_types.trained import measure_trained, trained_variants
from tests.model_types.variants import variants


def found(names: Iterable[str], compiled: bool) -> dict[str, Any]:
    """What these variants give, by name."""
    rows = {}
    for name in names:
        model_type, settings = variants()[name]
        with tempfile.TemporaryDirectory() as folder:
            torch.compiler.reset()
            first = compiled and name == model_type
            rows[name] = measure(model_type, settings, Path(folder), first)
            print(name, {k: v for k, v in rows[name].items() if k != "model_type"}, flush=True)
    return rows


def found_trained(names: Iterable[str], write: bool = False) -> dict[str, Any]:
    """What real runs of these variants give, by name; written one by one."""
    rows = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measure_trained(name, Path(folder))
        print(name, rows[name], flush=True)
        if write:
            variants = json.loads(FILE.read_text())["variants"]
            write_table(variants | {name: variants[name] | rows[name]})
    return rows


def write_table(rows: dict[str, Any]) -> None:
    versions = {"torch": torch.__version__.split("+")[0]}
    versions |= {"transformers": transformers.__version__}
    content = {"versions": versions, "variants": dict(sorted(rows.items()))}
    FILE.write_text(json.dumps(content, indent=1) + "\n")


def with_kept(row: dict[str, Any], old: dict[str, Any], compiled: bool) -> dict[str, Any]:
    """A row with what was not measured again."""
    kept = TRAINED if compiled else (*TRAINED, "compile")
    return row | {key: old[key] for key in kept if key in old and "export" in row}


def kind(value: Any) -> Any:
    """Figures are all the same: how small they are is another machine's rounding."""
    return "exact" if isinstance(value, float) else value


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{name}, {key}: {old.get(name, {}).get(key)} -> {value}"
        for name, row in new.items()
        for key, value in row.items()
        if kind(old.get(name, {}).get(key)) != kind(value)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model_types")
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name} anew")
    parser.add_argument("--only", nargs="*", default=[], metavar="TYPE")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--trained", action="store_true", help="by real runs on one rank and two")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    old = json.loads(FILE.read_text())["variants"] if FILE.is_file() else {}
    types = {name: kind for name, (kind, _) in variants().items()}
    if options.trained:
        types = trained_variants()
    names = [name for name, kind in types.items() if not options.only or kind in options.only]
    if options.trained:
        new = found_trained(names, options.write)
    else:
        with process_group("cpu"):
            new = found(names, not options.no_compile)
        compiled = not options.no_compile
        new = {name: with_kept(row, old.get(name, {}), compiled) for name, row in new.items()}
    lines = differences(old, new)
    print("\n".join(lines) or "all types are as they were")
    if options.write:
        if not options.trained:
            write_table((old if options.only else {}) | new)
        subprocess.run([sys.executable, REPO / "tools" / "docs.py"], check=True)
    return int(bool(lines) and not options.write)


if __name__ == "__main__":
    sys.exit(main())
