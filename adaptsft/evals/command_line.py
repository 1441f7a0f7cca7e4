"""Types of arguments that several command lines share, and records from stdin."""

import json
import math
import sys
from argparse import ArgumentTypeError
from typing import Any

from adaptsft.errors import DataError


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
    """One JSON value per line. Raises DataError with the number of the first line that is none."""
    records = []
    for number, line in enumerate(sys.stdin, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"stdin, line {number}: not JSON ({error}): {line.strip()!r:.80}"
            ) from None
    return records
