"""Digits: calculate with a string of six digits. Unlike in the other families an answer may depend
on its neighbours and its place."""

import random
from collections.abc import Callable
from itertools import pairwise

from benchmarks.lab.tasks import Family, Task

DIGITS = "0123456789"
SYMBOLS = "ABCDEFGHIJKLMNOPQRST"  # written by no task of the pretraining mixture
LENGTH = 6


def number(generator: random.Random, zipf: bool) -> str:
    """Digits with a weight of 1/(d + 1), or uniform."""
    return "".join(
        generator.choices(DIGITS, [1 / rank for rank in range(1, 11)] if zipf else None, k=LENGTH)
    )


def each(function: Callable[[int], int]) -> Callable[[str], str]:
    """Digit by digit, modulo 10."""
    return lambda digits: "".join(DIGITS[function(int(c)) % 10] for c in digits)


def pairs(function: Callable[[int, int], int]) -> Callable[[str], str]:
    """Every digit with the next one, the last with the first, modulo 10."""
    return lambda digits: "".join(
        DIGITS[function(int(a), int(b)) % 10] for a, b in pairwise(digits + digits[0])
    )


def rotate(digits: str) -> str:
    return digits[1:] + digits[0]


complement = each(lambda digit: 9 - digit)
COMPLEMENT = Task("<complement>", complement, DIGITS)

FAMILY = Family(
    name="digits",
    question=number,
    pretrained=(
        Task("<add>", each(lambda digit: digit + 3), DIGITS),
        COMPLEMENT,
        Task("<rotate>", rotate, DIGITS),
        Task("<larger>", pairs(max), DIGITS),
    ),
    strong=COMPLEMENT,
    middle=Task("<complement><rotate>", lambda digits: rotate(complement(digits)), DIGITS),
    weak=Task(
        "<code>",
        lambda digits: "".join(
            SYMBOLS[int(c) + 10 * (place % 2)] for place, c in enumerate(digits)
        ),
        SYMBOLS,
    ),
    redefined=Task("<add>", each(lambda digit: 7 * digit + 1), DIGITS),
    open=Task("<either>", lambda digits: [c + DIGITS[(int(c) + 5) % 10] for c in digits], DIGITS),
)
