"""python -m adaptsft.evals grade GRADER < in.jsonl > out.jsonl: anybody's outputs, graded.

A JSON object a line in and out, same order.
"""

import argparse
import json
import sys

from tqdm import tqdm

from adaptsft.errors import DataError
from adaptsft.evals.graders import GRADERS, grade_all


def read_lines() -> list[dict]:
    """The objects on stdin. Raises DataError with the number of the first line that is not JSON."""
    records = []
    for number, line in enumerate(sys.stdin, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"line {number} of stdin is not JSON ({error}): {line.strip()!r:.80}"
            ) from None
    return records


def main(arguments: list[str]) -> int:
    """Returns 0; raises UserError."""
    if arguments[:1] == ["code"]:
        from adaptsft.evals.code.evalplus import grade_command

        return grade_command(arguments[1:])
    table = "\n".join(
        f"  {name:15}{grader.help}\n{'':17}reads {', '.join(grader.reads).replace('|', ' or ')}; "
        f"writes {', '.join(grader.writes)}"
        for name, grader in GRADERS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m adaptsft.evals grade",
        usage="%(prog)s GRADER [--workers N] < in.jsonl > out.jsonl",
        description="Grades outputs: one JSON object per line on stdin, one verdict per line on "
        "stdout, in the same order.",
        epilog=f"graders:\n{table}\n  code           programs, against tests: see `grade code "
        "--help`\n\n"
        "Also written: unparsed (no answer was found) and timeout (stopped; counts as wrong). "
        "docs/graders.md has the rules of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grader", metavar="GRADER", choices=GRADERS, help="one of the list below")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes of the math graders (default: one per core)",
    )
    options = parser.parse_args(arguments)
    records = read_lines()
    with tqdm(
        total=len(records), desc=options.grader, unit="answer", mininterval=1.0, delay=1.0
    ) as bar:
        verdicts = grade_all(options.grader, records, workers=options.workers, progress=bar.update)
    sys.stdout.writelines(json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in verdicts)
    return 0
