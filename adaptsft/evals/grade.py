"""python -m adaptsft.evals grade GRADER < in.jsonl > out.jsonl: grades any outputs.

One JSON object per line, in and out, in the same order: every line has its verdict, also one that
cannot be graded.
"""

import argparse
from contextlib import suppress

from tqdm import tqdm

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.code.command import main as grade_code
from adaptsft.evals.command_line import count_errors, read_stdin, write_stdout
from adaptsft.evals.graders.grading import grade_all
from adaptsft.evals.graders.registry import GRADERS


def main(arguments: list[str]) -> int:
    """Returns 0, or 3 where lines could not be graded; raises UserError."""
    if arguments[:1] == ["code"]:
        return grade_code(arguments[1:])
    options = _parser().parse_args(arguments)
    records = read_stdin()
    if options.units:
        grader = GRADERS[options.grader]
        if "units" not in grader.optional:
            raise ConfigError(f"--units {options.units}: {options.grader} does not read units")
        for number, record in enumerate(records):
            with suppress(DataError):  # what is refused is shown with the keys that it came with
                grader.check(record)
                records[number] = {"units": options.units} | record
    bar = tqdm(total=len(records), desc=options.grader, unit="answer", mininterval=1.0, delay=1.0)
    with bar:
        verdicts = grade_all(options.grader, records, workers=options.workers, progress=bar.update)
    write_stdout(verdicts)
    return count_errors(verdicts, GRADERS[options.grader].writes)


def _parser() -> argparse.ArgumentParser:
    table = "\n".join(
        f"  {name:15}{grader.help}\n{'':17}reads {', '.join(grader.reads).replace('|', ' or ')}; "
        f"writes {', '.join(grader.writes)}"
        for name, grader in GRADERS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m adaptsft.evals grade",
        usage="%(prog)s GRADER [--units UNITS] [--workers N] < in.jsonl > out.jsonl",
        description="Grades outputs: one JSON object per line on stdin, one verdict per line on "
        "stdout, in the same order.",
        epilog=f"graders:\n{table}\n"
        "  code           programs, against tests: see `grade code --help`\n\n"
        "Also written: unparsed (no answer was found) and timeout (stopped; counts as wrong).\n"
        "Every line has its verdict. One that cannot be graded (not JSON, a key is missing,\n"
        "blank) has null in place of the grades, and `error`: why. Their number is on stderr, and\n"
        "the exit code is then 3; for blank lines alone it is 0. More in docs/graders.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grader", metavar="GRADER", choices=GRADERS, help="one of the list below")
    parser.add_argument(
        "--units",
        choices=GRADERS["math-robust"].optional["units"].choices,
        help="math-robust: strict asks for the gold's unit (default: ignore, as benchmarks do); "
        "a record's own `units` goes before",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes of the math graders (default: one per core)",
    )
    return parser
