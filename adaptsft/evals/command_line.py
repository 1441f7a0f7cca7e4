"""What several command lines share: types of arguments, and JSON lines in and out."""

import codecs
import json
import math
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterable
from typing import Any

from adaptsft.errors import DataError
from adaptsft.evals import samples

BLANK = "the line is blank"


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: must be a whole number, 1 or more")
    return int(text)


def count(text: str) -> int:
    return 0 if text == "0" else positive(text)


def temperatures(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(
            f"{text}: write a temperature, or several with commas, such as 0,1"
        ) from None
    if not all(0 <= value < math.inf for value in values):
        raise ArgumentTypeError("temperatures are 0 (greedy) or above")
    return values


def read_stdin() -> list[Any]:
    """What each line of stdin holds: a JSON value, or a DataError, which is not raised."""
    lines = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not lines[-1]:  # what follows the end of the last line is none
        lines.pop()
    return [_value(line) for line in lines]


def _value(line: bytes) -> Any:
    if not line.strip():
        return DataError(BLANK)
    try:
        # Python programs write lone surrogates so, where they write them at all
        return json.loads(line.decode(errors="surrogatepass"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested too deeply
        return DataError(f"not JSON ({error}): {line.decode(errors='replace').strip()!r:.80}")


def write_stdout(verdicts: Iterable[Any]) -> None:
    """JSON lines, in UTF-8 whatever the terminal's encoding is."""
    sys.stdout.flush()
    sys.stdout.buffer.writelines(samples.to_json(verdict).encode() + b"\n" for verdict in verdicts)
    sys.stdout.buffer.flush()


def count_errors(verdicts: list[dict[str, Any]], wanted: tuple[str, ...]) -> int:
    """The exit code, after what is wrong with the verdicts was said on stderr.

    A verdict with null for all that is `wanted` is of a line that could not be graded: 3, unless
    such lines are blank.
    """
    blank, ungraded, failed = [], [], []
    for number, verdict in enumerate(verdicts, 1):
        if (error := verdict.get("error")) is not None:
            broken = all(verdict.get(key) is None for key in wanted)
            kind = blank if error == BLANK else ungraded if broken else failed
            kind.append((number, error))
    for found, what in (
        (ungraded, "could not be graded"),
        (failed, "count as wrong, since grading failed"),
        (blank, "have no verdict"),
    ):
        if found:
            number, error = found[0]
            print(
                f"{len(found)} of {len(verdicts)} lines {what}; the first is line {number}: "
                f"{error}",
                file=sys.stderr,
            )
    return DataError.exit_code if ungraded else 0
