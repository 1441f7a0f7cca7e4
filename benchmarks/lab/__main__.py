"""The continuum lab: does one adaptive objective do as well, everywhere, as the fixed one that is
best there?

    python -m benchmarks.lab --preset cpu
    python -m benchmarks.lab --preset full --families digits facts --methods oracle auto
    python -m benchmarks.lab --family mine.py --regime-file more.py --bases 0 1 0@60
    python -m benchmarks.lab --method-file mine.yaml --methods mine auto
    python -m benchmarks.lab --report runs/lab_full --methods auto linear deft

A small model is pretrained on a family of generated tasks; every method then fine-tunes it in every
regime with adaptsft.train, and is scored on held-out questions. Finished runs are found again:
after an interruption, or with another method, regime or seed, only what is missing is run. The
presets are configs/lab/*.yaml, the methods configs/lab/methods.yaml; key=value changes a key of the
preset.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from adaptsft.errors import UserError
from benchmarks.lab import families, grid, real, regimes, report, settings
from benchmarks.lab.settings import Lab, Methods
from benchmarks.lab.smollm2 import report as smollm2_report, runs as smollm2
from benchmarks.lab.stages import stage

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "lab"


def parse(arguments: list[str]) -> argparse.Namespace:
    summary, _, description = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset",
        default="cpu",
        help="cpu: 20 minutes on 2 cores. full: the whole grid, hours. gpu: a larger model. "
        "smollm2: a real one, with data, from packages. Or a file",
    )
    parser.add_argument("--families", nargs="+", help="instead of the preset's")
    parser.add_argument(
        "--family",
        action="append",
        default=[],
        metavar="PATH.py",
        help="a file with a FAMILY: beside --families, or instead of the preset's; repeatable",
    )
    parser.add_argument(
        "--regimes",
        nargs="+",
        help="instead of the preset's; NAME@60 has 60 steps, NAME@2epochs half as many examples, "
        "seen twice",
    )
    parser.add_argument(
        "--regime-file",
        action="append",
        default=[],
        metavar="PATH.py",
        help="a file with REGIMES: --regimes may name them; without, all of them, instead of the "
        "preset's; repeatable",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        help="instead of the preset's; `oracle` stands for the grid of fixed alphas",
    )
    parser.add_argument(
        "--method-file",
        action="append",
        default=[],
        metavar="PATH.yaml",
        help="a file with more methods, as configs/lab/methods.yaml: --methods may name them; "
        "without, all of them, instead of the preset's; repeatable",
    )
    parser.add_argument("--seeds", nargs="+", help="instead of the preset's")
    parser.add_argument(
        "--bases",
        nargs="+",
        help="instead of the preset's: seeds of pretraining; 0@90 is stopped where the strong task "
        "is right in 90 %%",
    )
    parser.add_argument(
        "--lrs", nargs="+", help="instead of the preset's: every method at every learning rate"
    )
    parser.add_argument(
        "--tune-on",
        nargs="+",
        metavar="FAMILY",
        help="instead of the preset's: the families on which each method's learning rate is chosen",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="train runs of a shape together as one stacked model (benchmarks/lab/stacked): for "
        "searching",
    )
    parser.add_argument("--workers", help="instead of the preset's: processes, one thread each")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of results, data and pretrained models (default: runs/lab_PRESET, or "
        "runs/lab_PRESET_fast)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="only tabulate and plot the results in this folder, or in a results.json (then into "
        "--out): of all families, regimes and seeds, or of those given; beside the oracle the "
        "methods given, or all, and where the first of them is behind another",
    )
    parser.add_argument(
        "key=value", nargs="*", help="a key of the preset, such as finetune.train.lr=1e-3"
    )
    # taken out first: --methods would take them for methods
    overrides = [argument for argument in arguments if re.match(r"[\w.]+=", argument)]
    options = parser.parse_args([argument for argument in arguments if argument not in overrides])
    if stray := getattr(options, "key=value"):
        parser.error(f"{stray[0]}: not key=value")
    options.overrides = overrides
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    started = time.perf_counter()
    try:
        files = [CONFIGS / "methods.yaml", *map(Path, options.method_file)]
        methods = settings.read_methods(files)
        if options.method_file and not options.methods:
            ours = settings.read_methods(files[:1]).methods
            options.methods = [name for name in methods.methods if name not in ours]
        if options.report:
            tabulate(options, methods)
            return 0
        path = (
            Path(options.preset)
            if options.preset.endswith(".yaml")
            else CONFIGS / f"{options.preset}.yaml"
        )
        overrides = [
            f"{name}={json.dumps(values)}" for name, values in lists(options).items() if values
        ]
        overrides += [f"workers={options.workers}"] if options.workers else []
        overrides += ["fast=true"] if options.fast else []
        failed = run(
            settings.read(Lab, path, overrides + options.overrides),
            methods,
            options.out or Path("runs") / f"lab_{path.stem}{'_fast' if options.fast else ''}",
        )
    except UserError as error:
        print(f"benchmarks.lab: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "\nbenchmarks.lab: interrupted; the same command goes on with what is missing",
            file=sys.stderr,
        )
        return 130
    print(f"\nFinished in {(time.perf_counter() - started) / 60:.1f} min.")
    return 1 if failed else 0


def lists(options: argparse.Namespace) -> dict[str, list[str]]:
    """What the command asks for instead of the preset's lists, where it does. Raises
    ConfigError."""
    names = ("methods", "seeds", "bases", "lrs", "tune_on")
    asked = {name: getattr(options, name) or [] for name in names}
    asked["families"] = [*(options.families or []), *options.family]
    files = options.regime_file
    asked["regimes"] = regimes.expanded(options.regimes or files, files)
    return asked


def named(family: str) -> str:
    """The name of a family that is given by name or path; of results, any name."""
    return families.find(family).name if family.endswith(".py") else family


def run(lab: Lab, methods: Methods, folder: Path) -> int:
    """Everything that the preset asks for and that is not there; then the report. Returns the
    number of runs that failed."""
    keys = settings.check(lab, methods)
    if lab.smollm2.warm_up:
        torch.set_num_threads(lab.workers)
        with stage("packages, and the warm-up of SmolLM2"):
            asked = smollm2.asked(lab, keys, folder)
        failed = progress(asked, smollm2.complete)
    elif lab.real.regimes:
        failed = progress(real.asked(lab, keys, folder), real.complete)
    else:
        with grid.workers(lab.workers) as pool:
            with stage(f"pretraining on {', '.join(map(named, lab.families))}") as show:
                bases = grid.pretrained(pool, lab, folder, show)
            asked = grid.asked(lab, keys, folder, bases)
            failed = progress(asked, lambda missing: grid.complete(pool, missing))
    results = report.read(folder)
    report.write(folder, results, methods.oracle, tune_on=lab.tune_on)
    smollm2_report.write(folder, results)
    return failed


def tabulate(options: argparse.Namespace, methods: Methods) -> None:
    asked = lists(options)
    results = report.selected(
        report.read(options.report),
        family=[named(entry) for entry in asked["families"]] or None,
        regime=[regimes.name_of(entry) for entry in asked["regimes"]] or None,
        seed=options.seeds,
        base=options.bases,
    )
    beside = (
        Path("runs") / f"lab_{options.report.stem}" if options.report.is_file() else options.report
    )
    report.write(options.out or beside, results, methods.oracle, options.methods, asked["tune_on"])
    smollm2_report.write(options.out or beside, results)


def progress(
    asked: list[Any],
    complete: Callable[[list[Any]], Iterator[tuple[Any, dict[str, Any] | UserError]]],
) -> int:
    """Do those of the runs that are not finished, under a bar; returns how many failed, each with
    its message."""
    missing, failed = [one for one in asked if one.finished() is None], 0
    print(
        f"{len(asked)} runs, {len(asked) - len(missing)} of them found finished; results in "
        f"{asked[0].folder}",
        flush=True,
    )
    with tqdm(total=len(missing), unit="run", dynamic_ncols=True) as bar:
        for one, result in complete(missing):
            if isinstance(result, UserError):
                failed += 1
                bar.write(f"{one.name}: {type(result).__name__}: {result}")
            else:
                bar.set_postfix_str(f"{one.name} {result['greedy']:.2f} {result['sampled']:.2f}")
            bar.update()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
