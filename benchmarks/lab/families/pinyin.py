"""Pinyin: Chinese words of two syllables, in other spellings than their own (`zhong1guo2`).

A question is a word in pinyin, with the tones as digits (5 is none) and v for ü. The model is
pretrained on Gwoyeu Romatzyh, which spells tones with letters, on pinyin with tone marks, on the
finals of the syllables, and on Palladius' Cyrillic. It is asked for the finals with tone marks, a
composition; for bopomofo, another script; for the spelling of Wade and Giles under the tag of the
Cyrillic; and for that or pinyin with tone marks, both right.

Data: the dictionary of phrases and the styles of the package pypinyin (MIT).
"""

import functools
import random

from benchmarks.lab import loading
from benchmarks.lab.tasks import Answer, Family, Task

PACKAGE = "pypinyin==0.55.0"
PHRASES = loading.package("pypinyin.phrases_dict", PACKAGE).phrases_dict
NUMBERED = loading.package("pypinyin.contrib.tone_convert", PACKAGE).to_tone3
PYPINYIN = loading.package("pypinyin.style", PACKAGE)
Style = loading.package("pypinyin", PACKAGE).Style
ASKED = "abcdefghijklmnopqrstuvwxyz12345"
# how each is written, and what stands between two syllables
GWOYEU = (Style.GWOYEU, "")
MARKS = (Style.TONE, "")
FINALS = (Style.FINALS, "-")
MARKED_FINALS = (Style.FINALS_TONE, "-")
CYRILLIC = (Style.CYRILLIC, "")
BOPOMOFO = (Style.BOPOMOFO, "")
WADE_GILES = (Style.WADEGILES, "-")
SPELLINGS = (GWOYEU, MARKS, FINALS, MARKED_FINALS, CYRILLIC, BOPOMOFO, WADE_GILES)
Spelling = tuple[Style, str]


def words() -> dict[str, tuple[str, str]]:
    """word, in letters and digits -> its syllables, with tone marks."""
    found = {}
    for phrase, readings in sorted(PHRASES.items()):
        if len(phrase) == len(readings) == 2:
            syllables = readings[0][0], readings[1][0]
            word = "".join(NUMBERED(one, neutral_tone_with_five=True) for one in syllables)
            if "tie" not in word:  # the package's Wade and Giles misspells that syllable
                found[word] = syllables
    return found


@functools.cache
def syllable(style: Style, marked: str) -> str:
    """Of one with a tone mark."""
    text = PYPINYIN.convert(marked, style=style, strict=True)
    return text.rstrip("1234").replace("v", "ü")


def spelt(spelling: Spelling, word: str) -> str:
    style, between = spelling
    return between.join(syllable(style, marked) for marked in WORDS[word])


WORDS = words()
loading.require_data(
    {word: [spelt(spelling, word) for spelling in SPELLINGS] for word in WORDS},
    "c8910520841935d1",
    PACKAGE,
)
SHUFFLED = sorted(WORDS)
random.Random("words").shuffle(SHUFFLED)
WEIGHTS = [1 / rank for rank in range(1, len(SHUFFLED) + 1)]


def word(generator: random.Random, zipf: bool) -> str:
    """A word with a weight of 1/rank, or uniform."""
    return generator.choices(SHUFFLED, WEIGHTS if zipf else None)[0]


def characters(*spellings: Spelling) -> str:
    return "".join(sorted({c for of in spellings for word in WORDS for c in spelt(of, word)}))


def task(tag: str, *spellings: Spelling) -> Task:
    """Any of the spellings is right."""

    def answer(word: str) -> Answer:
        right = {spelt(spelling, word) for spelling in spellings}
        return frozenset(right) if len(right) > 1 else right.pop()

    return Task(tag, answer, characters(*spellings))


ROMATZYH = task("<gwoyeu>", GWOYEU)

FAMILY = Family(
    name="pinyin",
    question=word,
    pretrained=(
        ROMATZYH,
        task("<marks>", MARKS),
        task("<finals>", FINALS),
        task("<cyrillic>", CYRILLIC),
    ),
    strong=ROMATZYH,
    middle=task("<marks><finals>", MARKED_FINALS),
    weak=task("<bopomofo>", BOPOMOFO),
    redefined=task("<cyrillic>", WADE_GILES),
    open=task("<latin>", MARKS, WADE_GILES),
    characters="".join(sorted({*ASKED, *characters(*SPELLINGS)})),
)
