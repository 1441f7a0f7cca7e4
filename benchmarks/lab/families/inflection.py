"""Inflection: the case forms of Russian nouns that begin with к, of three to seven letters.

A question is a noun in the nominative singular. The model is pretrained on the genitive, dative and
prepositional singular and the nominative plural, and asked for the dative plural, a composition;
for the genitive in Latin letters (ISO 9), another script; for the instrumental plural under the tag
of the dative; and for the instrumental singular, where many nouns have two forms (-ой, -ою).

Data: OpenCorpora (CC BY-SA 3.0), by the package pymorphy3-dicts-ru (MIT), read by pymorphy3 (MIT).
"""

import functools
import random
from collections import defaultdict
from collections.abc import Callable, Collection

from benchmarks.lab import loading
from benchmarks.lab.tasks import Answer, Family, Task

PACKAGE = "pymorphy3-dicts-ru==2.4.417150.4580142"
CYRILLIC = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя"
LATIN = str.maketrans(CYRILLIC, "abvgdeëžzijklmnoprstufhcčšŝʺyʹèûâ")
# names, and words of which some cases are missing or unsettled
LEFT_OUT = {"Name", "Surn", "Patr", "Geox", "Orgn", "Trad", "Abbr", "Fixd", "Sgtm", "Pltm", "ms-f"}
CASES = {
    "gen": {"gent", "sing"},
    "dat": {"datv", "sing"},
    "loc": {"loct", "sing"},
    "ins": {"ablt", "sing"},
    "pl": {"nomn", "plur"},
    "pl dat": {"datv", "plur"},
    "pl ins": {"ablt", "plur"},
}


def nouns() -> dict[str, dict[str, list[str]]]:
    """noun -> case -> its forms; of nouns with one declension."""
    morphology = loading.package("pymorphy3", "pymorphy3==2.0.6")
    loading.package("pymorphy3_dicts_ru", PACKAGE)
    dictionary = morphology.MorphAnalyzer(lang="ru").dictionary
    paradigms: dict[str, list[int]] = defaultdict(list)
    for word, (paradigm, form) in dictionary.words.iteritems("к"):
        if form == 0 and 3 <= len(word) <= 7 and set(word) <= set(CYRILLIC):
            paradigms[word].append(paradigm)
    found = {}
    for word, of in sorted(paradigms.items()):
        forms = declension(dictionary.build_paradigm_info(of[0]), word)
        if len(of) == 1 and forms is not None:
            found[word] = forms
    return found


def declension(paradigm: list[tuple[str, object, str]], word: str) -> dict[str, list[str]] | None:
    """case -> forms of a paradigm of (prefix, tag, suffix); None of what is left out."""
    grammemes = [set(str(tag).replace(" ", ",").split(",")) for _, tag, _ in paradigm]
    if "NOUN" not in grammemes[0] or grammemes[0] & LEFT_OUT:
        return None
    stem = word[: len(word) - len(paradigm[0][2])]
    found: dict[str, list[str]] = {case: [] for case in CASES}
    for (prefix, _, suffix), of in zip(paradigm, grammemes, strict=True):
        for case, wanted in CASES.items():
            if wanted <= of and not of & {"gen2", "loc2"}:
                found[case].append(prefix + stem + suffix)
    return found if all(found.values()) else None


NOUNS = nouns()
loading.require_data(NOUNS, "1b8a38f460c0dd1c", PACKAGE)
SHUFFLED = sorted(NOUNS)
random.Random("nouns").shuffle(SHUFFLED)
WEIGHTS = [1 / rank for rank in range(1, len(SHUFFLED) + 1)]


def noun(generator: random.Random, zipf: bool) -> str:
    """A noun with a weight of 1/rank, or uniform."""
    return generator.choices(SHUFFLED, WEIGHTS if zipf else None)[0]


def forms(case: str, noun: str) -> Answer:
    return one_or_more(NOUNS[noun][case])


def latin(case: str, noun: str) -> Answer:
    return one_or_more([form.translate(LATIN) for form in NOUNS[noun][case]])


def one_or_more(right: Collection[str]) -> Answer:
    return frozenset(right) if len(set(right)) > 1 else next(iter(right))


def task(tag: str, case: str, of: Callable[[str, str], Answer] = forms) -> Task:
    alphabet = CYRILLIC if of is forms else CYRILLIC.translate(LATIN)
    return Task(tag, functools.partial(of, case), alphabet)


GENITIVE = task("<gen>", "gen")

FAMILY = Family(
    name="inflection",
    question=noun,
    pretrained=(GENITIVE, task("<dat>", "dat"), task("<loc>", "loc"), task("<pl>", "pl")),
    strong=GENITIVE,
    middle=task("<pl><dat>", "pl dat"),
    weak=task("<latin>", "gen", latin),
    redefined=task("<dat>", "pl ins"),
    open=task("<ins>", "ins"),
    characters=CYRILLIC + CYRILLIC.translate(LATIN),
)
