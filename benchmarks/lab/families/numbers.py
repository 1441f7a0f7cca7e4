"""Number words: numbers below 10,000 in a language, of at most 24 characters (`quarantadue`).

The model is pretrained on Spanish, Italian, Turkish, Catalan and Vietnamese. Portuguese is a
relative of Spanish; Telugu another script; Romanian comes under the tag of Spanish; French is right
as the package has it for France and for Switzerland (soixante-dix, septante).

Data: the package num2words (LGPL-2.1).
"""

import functools
import random

from benchmarks.lab import loading
from benchmarks.lab.tasks import Answer, Family, Task

PACKAGE = "num2words==0.5.14"
NUM2WORDS = loading.package("num2words", PACKAGE).num2words
LANGUAGES = ("es", "it", "tr", "ca", "vi", "pt", "te", "ro", "fr", "fr_CH")
LONGEST = 24  # characters in any language


@functools.cache
def written(language: str, number: int) -> str:
    return NUM2WORDS(number, lang=language).strip()


NUMBERS = [
    number
    for number in range(1, 10_000)
    if all(len(written(language, number)) <= LONGEST for language in LANGUAGES)
]
loading.require_data(
    {language: [written(language, number) for number in NUMBERS] for language in LANGUAGES},
    "c3fa6857736b416d",
    PACKAGE,
)
WEIGHTS = [1 / number for number in NUMBERS]


def number(generator: random.Random, zipf: bool) -> str:
    """A number with a weight of one over it, or uniform."""
    return str(generator.choices(NUMBERS, WEIGHTS if zipf else None)[0])


def task(tag: str, *languages: str) -> Task:
    def answer(question: str) -> Answer:
        right = {written(language, int(question)) for language in languages}
        return frozenset(right) if len(right) > 1 else right.pop()

    return Task(tag, answer, characters(*languages))


def characters(*languages: str) -> str:
    return "".join(sorted({c for of in languages for n in NUMBERS for c in written(of, n)}))


ITALIAN = task("<it>", "it")

FAMILY = Family(
    name="numbers",
    question=number,
    pretrained=(
        task("<es>", "es"),
        ITALIAN,
        task("<tr>", "tr"),
        task("<ca>", "ca"),
        task("<vi>", "vi"),
    ),
    strong=ITALIAN,
    middle=task("<pt>", "pt"),
    weak=task("<te>", "te"),
    redefined=task("<es>", "ro"),
    open=task("<fr>", "fr", "fr_CH"),
    characters="0123456789" + characters(*LANGUAGES),
)
