"""Measures: a quantity, written out as CLDR has it (`12kg`, `12 kilogramów`).

A question is a number of one to four digits, the last of them perhaps a decimal, and a unit. Nouns
agree with numbers, fractions included, by the rules of the language. The model is pretrained on
Polish, Slovene, Lithuanian, Finnish and Romanian. Slovak is a relative of Polish; Ukrainian another
script; Hungarian comes under the tag of Finnish; Serbian is right in Cyrillic and in Latin letters.

Data: Unicode CLDR, by the package babel (BSD-3-Clause; the data under the Unicode licence).
"""

import functools
import random

from benchmarks.lab import loading
from benchmarks.lab.tasks import Answer, Family, Task

PACKAGE = "babel==2.18.0"
BABEL = loading.package("babel.units", PACKAGE)
# those that CLDR has in every language below
UNITS = {
    "kg": "mass-kilogram",
    "m": "length-meter",
    "min": "duration-minute",
    "l": "volume-liter",
    "km": "length-kilometer",
    "y": "duration-year",
    "s": "duration-second",
    "g": "mass-gram",
    "cm": "length-centimeter",
    "w": "duration-week",
    "W": "power-watt",
    "mo": "duration-month",
    "B": "digital-byte",
    "t": "mass-tonne",
    "deg": "angle-degree",
    "ha": "area-hectare",
    "cal": "energy-calorie",
    "lb": "mass-pound",
    "oz": "mass-ounce",
    "c": "duration-century",
}
LANGUAGES = ("pl", "sl", "lt", "fi", "ro", "sk", "uk", "hu", "sr", "sr_Latn")
SYMBOLS = list(UNITS)
RANKS = [1 / rank for rank in range(1, len(SYMBOLS) + 1)]
NUMBERS = range(1, 10_000)
RECIPROCALS = [1 / number for number in NUMBERS]


@functools.cache
def written(language: str, question: str) -> str:
    number = question.rstrip("".join(SYMBOLS))
    value = float(number) if "." in number else int(number)
    unit = UNITS[question.removeprefix(number)]
    text = BABEL.format_unit(value, unit, "long", locale=language)
    return text.replace("\N{NO-BREAK SPACE}", " ")


def question(generator: random.Random, zipf: bool) -> str:
    """Numbers with a weight of one over them, and units with 1/rank; or any unit, and as many
    numbers of each length. One in four has a decimal."""
    if zipf:
        number = generator.choices(NUMBERS, RECIPROCALS)[0]
    else:
        length = generator.randint(1, 4)
        number = generator.randrange(10 ** (length - 1), 10**length)
    text = str(number)
    if number > 9 and number % 10 and generator.random() < 0.25:
        text = f"{text[:-1]}.{text[-1]}"
    return text + generator.choices(SYMBOLS, RANKS if zipf else None)[0]


# every form of every unit, and every digit in every place
ALL = [
    f"{number}{symbol}"
    for symbol in SYMBOLS
    for number in (1, 2, 3, 5, 11, 21, 22, 101, 102, 100, 1.5, 7.2, 3456, 9780)
]
WRITTEN = {language: [written(language, one) for one in ALL] for language in LANGUAGES}
loading.require_data(WRITTEN, "2a44187e0fcb0405", PACKAGE)


def characters(*languages: str) -> str:
    return "".join(sorted({c for of in languages for text in WRITTEN[of] for c in text}))


def task(tag: str, *languages: str) -> Task:
    """As any of the languages has it."""

    def answer(question: str) -> Answer:
        right = {written(language, question) for language in languages}
        return frozenset(right) if len(right) > 1 else right.pop()

    return Task(tag, answer, characters(*languages))


POLISH = task("<pl>", "pl")

FAMILY = Family(
    name="measures",
    question=question,
    pretrained=(
        POLISH,
        task("<sl>", "sl"),
        task("<lt>", "lt"),
        task("<fi>", "fi"),
        task("<ro>", "ro"),
    ),
    strong=POLISH,
    middle=task("<sk>", "sk"),
    weak=task("<uk>", "uk"),
    redefined=task("<fi>", "hu"),
    open=task("<sr>", "sr", "sr_Latn"),
    characters="".join(sorted({*".", *"".join(SYMBOLS), *characters(*LANGUAGES)})),
)
