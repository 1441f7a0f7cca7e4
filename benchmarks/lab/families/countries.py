"""Countries: the names of two of them in a language, as CLDR has it (`Allemagne, Grèce`).

A question is two codes of ISO 3166: `DEGR`. Names have to be learned by heart, one by one; pairs
are held out. The model is pretrained on English, French, Spanish, Indonesian and Hausa. Javanese is
a relative of Indonesian; Sinhala another script; Wolof comes under the tag of English; Serbian is
right in Cyrillic and in Latin letters.

Data: Unicode CLDR, by the package babel (BSD-3-Clause; the data under the Unicode licence).
"""

import random
from collections.abc import Callable

from benchmarks.lab import loading
from benchmarks.lab.tasks import Family, Task

PACKAGE = "babel==2.18.0"
BABEL = loading.package("babel", PACKAGE)
# of at most 12 letters in all languages, of which few agree on their names
CHOSEN = "DE ES FR GR TR EG CN JP RU PL SE NO FI BR CL MX GH SN ET HU RO BG UA BE"
CODES = CHOSEN.split()
LANGUAGES = ("en", "fr", "es", "id", "ha", "jv", "si", "wo", "sr", "sr_Latn")
NAMES = {
    language: {code: BABEL.Locale.parse(language).territories[code] for code in CODES}
    for language in LANGUAGES
}
loading.require_data(NAMES, "e48acbda76083d4c", PACKAGE)


def codes(generator: random.Random, zipf: bool) -> str:
    """Two countries, with a weight of 1/rank, or uniform."""
    weights = [1 / rank for rank in range(1, len(CODES) + 1)] if zipf else None
    return "".join(generator.choices(CODES, weights, k=2))


def named(language: str) -> Callable[[str], str]:
    return lambda codes: ", ".join(NAMES[language][codes[i : i + 2]] for i in (0, 2))


def either(first: str, second: str) -> Callable[[str], frozenset[str]]:
    return lambda codes: frozenset({named(first)(codes), named(second)(codes)})


def characters(*languages: str) -> str:
    return "".join(sorted({*", ", *(c for of in languages for c in "".join(NAMES[of].values()))}))


def task(tag: str, language: str) -> Task:
    return Task(tag, named(language), characters(language))


FRENCH = task("<fr>", "fr")

FAMILY = Family(
    name="countries",
    question=codes,
    pretrained=(
        task("<en>", "en"),
        FRENCH,
        task("<es>", "es"),
        task("<id>", "id"),
        task("<ha>", "ha"),
    ),
    strong=FRENCH,
    middle=task("<jv>", "jv"),
    weak=task("<si>", "si"),
    redefined=task("<en>", "wo"),
    open=Task("<sr>", either("sr", "sr_Latn"), characters("sr", "sr_Latn")),
    characters="".join(sorted({*"".join(CODES), *characters(*LANGUAGES)})),
)
