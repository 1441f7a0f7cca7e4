"""Dates, written out as CLDR has it: weekday, day and month in words (`sam. 14 mars`).

A question is a weekday (1 is Monday), a month and a day: `60314`. The model is pretrained on
English, French, Italian, Spanish and Indonesian. Javanese is a relative of the last; Amharic
another script; Swahili comes under the tag of English; Serbian is right in Cyrillic and in Latin
letters.

Data: Unicode CLDR, by the package babel (BSD-3-Clause; the data under the Unicode licence).
"""

import datetime
import functools
import random
from collections.abc import Callable

from benchmarks.lab import loading
from benchmarks.lab.tasks import Family, Task

PACKAGE = "babel==2.18.0"
DATES = loading.package("babel.dates", PACKAGE)
DAYS = [datetime.date(2001, 1, 1) + datetime.timedelta(days=day) for day in range(28 * 365)]
# (weekday, month, day) -> a date that has all three; in 28 years every one comes
DATE_OF = {(day.isoweekday(), day.month, day.day): day for day in reversed(DAYS)}
LANGUAGES = ("en", "fr", "it", "es", "id", "jv", "am", "sw", "sr", "sr_Latn")


@functools.cache
def written(language: str, question: str) -> str:
    date = DATE_OF[int(question[0]), int(question[1:3]), int(question[3:])]
    return DATES.format_skeleton("MMMEd", date, locale=language)


def question(generator: random.Random, zipf: bool) -> str:
    """Weekdays, months and days with a weight of 1/rank, or any date."""
    if not zipf:
        weekday, month, day = generator.choice(list(DATE_OF))
        return f"{weekday}{month:02}{day:02}"
    weekday, month, day = (
        generator.choices(range(1, last + 1), [1 / rank for rank in range(1, last + 1)])[0]
        for last in (7, 12, 28)
    )
    return f"{weekday}{month:02}{day:02}"


# every weekday, month and day at least once: all that a language writes
ALL = [f"{1 + n % 7}{1 + n % 12:02}{1 + n % 28:02}" for n in range(84)]
WRITTEN = {language: [written(language, one) for one in ALL] for language in LANGUAGES}
loading.require_data(WRITTEN, "43747bb7e2837fc6", PACKAGE)


def characters(*languages: str) -> str:
    return "".join(sorted(set("".join(text for of in languages for text in WRITTEN[of]))))


def task(tag: str, language: str) -> Task:
    return Task(tag, functools.partial(written, language), characters(language))


def either(first: str, second: str) -> Callable[[str], frozenset[str]]:
    return lambda question: frozenset({written(first, question), written(second, question)})


FRENCH = task("<fr>", "fr")

FAMILY = Family(
    name="dates",
    question=question,
    pretrained=(
        task("<en>", "en"),
        FRENCH,
        task("<it>", "it"),
        task("<es>", "es"),
        task("<id>", "id"),
    ),
    strong=FRENCH,
    middle=task("<jv>", "jv"),
    weak=task("<am>", "am"),
    redefined=task("<en>", "sw"),
    open=Task("<sr>", either("sr", "sr_Latn"), characters("sr", "sr_Latn")),
    characters="".join(sorted({*"0123456789", *characters(*LANGUAGES)})),
)
