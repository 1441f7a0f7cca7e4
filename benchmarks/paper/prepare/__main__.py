"""Prepare a training set of the paper: fetch or read it, sample, filter, and write it as
adaptsft.train reads it.

    python -m benchmarks.paper.prepare numina_math                          # from the hub
    python -m benchmarks.paper.prepare m23k --source downloads/m23k --limit 100    # a trial
    python -m benchmarks.paper.prepare numina_math --help   # its fields, its options, the paper's

Writes OUT/NAME.jsonl, or OUT/NAME/PART.jsonl where a set has several parts, and OUT/NAME.json:
where it came from, what was read, drawn, dropped and kept, hashes, seed and versions.
docs/training_data.md compares the sets with the paper's.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from adaptsft.errors import ConfigError, UserError
from adaptsft.evals.command_line import positive
from adaptsft.evals.openbookqa import KINDS, Noise
from benchmarks.paper.prepare.pipeline import prepare
from benchmarks.paper.prepare.sets import SETS, TrainingSet
from benchmarks.paper.prepare.source import Options


def _source(parser: argparse.ArgumentParser, chosen: TrainingSet) -> None:
    hubs = ", ".join(dict.fromkeys(part.hub for part in chosen.parts))
    parser.add_argument(
        "--source",
        nargs="+",
        default=[],
        help="a name on the hub, or NAME@COMMIT (default: the newest, whose commit is noted); or a "
        "file, a folder, a quoted pattern "
        f"(default: {hubs})",
    )


def _broken(parser: argparse.ArgumentParser, chosen: TrainingSet) -> None:
    parser.add_argument(
        "--drop-broken",
        action="store_true",
        help="leave out records that cannot be used, and count them (default: an error)",
    )


def _sample(parser: argparse.ArgumentParser, chosen: TrainingSet) -> None:
    (part,) = (part for part in chosen.parts if part.sample)
    parser.add_argument(
        "--sample", type=positive, help=f"records drawn for {part.file} (default: {part.sample:,})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")


def _tokens(parser: argparse.ArgumentParser, chosen: TrainingSet) -> None:
    default = (
        f"{chosen.max_tokens}"
        if chosen.max_tokens
        else "0: none are; data.max_length and data.overlong of the trainer decide"
    )
    parser.add_argument(
        "--tokenizer",
        nargs="+",
        default=[],
        help="hub names or folders; a record must be short enough under each, template included",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=chosen.max_tokens,
        help=f"longer records are left out; 0: none (default: {default}). Needs --tokenizer",
    )


def _suffix(parser: argparse.ArgumentParser, chosen: TrainingSet) -> None:
    parser.add_argument(
        "--suffix",
        default=chosen.suffix,
        help=f"put after each prompt that does not end so (default: {chosen.suffix!r}, as the "
        "evaluation asks); '' for nothing",
    )


def _noise(parser: argparse.ArgumentParser, chosen: TrainingSet) -> None:
    parser.add_argument(
        "--noise-rate",
        type=float,
        default=0.0,
        help="share of labels made wrong (default: 0); the authors' is 0.3",
    )
    parser.add_argument(
        "--noise-kind",
        default="uniform",
        choices=KINDS,
        help="uniform: any other option; structured: always the next one",
    )
    parser.add_argument("--noise-seed", type=int, default=0, help="of the noise (default: 0)")


def _generator(parser: argparse.ArgumentParser, chosen: TrainingSet) -> None:
    parser.add_argument(
        "--generator",
        choices=["own", "reasoning-gym"],
        default="own",
        help="own: pinned and checked; reasoning-gym: that package, with its list of fonts, sorted",
    )


OPTIONS: dict[str, Callable[[argparse.ArgumentParser, TrainingSet], None]] = {
    "source": _source,
    "broken": _broken,
    "sample": _sample,
    "tokens": _tokens,
    "suffix": _suffix,
    "noise": _noise,
    "generator": _generator,
}


def describe(chosen: TrainingSet) -> str:
    """What a set is, and what its user must know before fetching it."""
    least, most = chosen.records
    facts = {
        "page": chosen.card,
        "records": f"{least:,}" if least == most else f"{least:,} to {most:,}",
        "size": chosen.size,
        "gate": "none that we know of",
        "licence": chosen.licence,
        "by using it you accept": chosen.accept,
    }
    lines = [
        textwrap.fill(f"{name}: {fact}", 110, initial_indent="  ", subsequent_indent="    ")
        for name, fact in facts.items()
    ]
    return "\n".join([f"{chosen.name}: {chosen.about.splitlines()[0]}", *lines])


def parser() -> argparse.ArgumentParser:
    listed = "\n\n".join(map(describe, SETS.values()))
    main = argparse.ArgumentParser(
        description=__doc__, epilog=listed, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = main.add_subparsers(dest="name", required=True, metavar="NAME", help=", ".join(SETS))
    for chosen in SETS.values():
        text = "\n".join([describe(chosen), *chosen.about.splitlines()[1:]])
        sub = names.add_parser(
            chosen.name, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        sub.add_argument("--out", type=Path, default=Path("data"), help="folder (default: data)")
        sub.add_argument(
            "--limit", type=positive, help="read the first records only: a trial, and noted as one"
        )
        sub.add_argument(
            "--allow-count",
            action="store_true",
            help="go on though the source has not the published number of records",
        )
        for option in chosen.asks:
            OPTIONS[option](sub, chosen)
    return main


def main(arguments: list[str] | None = None) -> int:
    given = vars(parser().parse_args(arguments))
    chosen = SETS[given.pop("name")]
    if "noise_rate" in given:
        given["noise"] = Noise(
            given.pop("noise_rate"), given.pop("noise_kind"), given.pop("noise_seed")
        )
        if given["noise"].rate:
            (part,) = chosen.parts
            chosen = replace(chosen, parts=(replace(part, file="openbookqa_noisy.jsonl"),))
    options = Options(**given)
    if options.max_tokens and not options.tokenizer:
        raise ConfigError(
            f"--max-tokens {options.max_tokens}: name what counts them by --tokenizer, or keep all "
            "records with --max-tokens 0"
        )
    if options.tokenizer and not options.max_tokens:
        raise ConfigError(
            f"--tokenizer {' '.join(options.tokenizer)}: counts nothing without --max-tokens"
        )
    if len(options.source) > len(chosen.parts):
        raise ConfigError(
            f"--source: {len(options.source)} sources for a set of {len(chosen.parts)}; a pattern "
            "or folder holds many files"
        )
    print(describe(chosen), flush=True)
    facts = prepare(chosen, options)
    for part in facts["parts"]:
        dropped = "".join(
            f", {count:,} {reason.replace('_', ' ')}"
            for reason, count in part["dropped"].items()
            if count
        )
        wrong = part["source"].get("wrong_labels")
        noisy = f", {wrong:,} with a wrong label" if wrong else ""
        print(
            f"{options.out / part['file']}: {part['kept']:,} records{noisy}; read "
            f"{part['read']:,}{dropped}"
        )
    if facts["warning"]:
        print(f"warning: {facts['warning']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"prepare: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
