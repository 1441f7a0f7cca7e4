"""The figlet task of the paper: a word of 2 to 5 letters, drawn in a FIGlet font, is to be read.

Generated, item by item.

Item i is drawn from the seed 42 + i: a word, a font, one of two questions, in this order, as
reasoning-gym's `figlet_font` does (seed 42, min_word_len 2, max_word_len 5, space_letters), whose
words (reasoning-gym 0.1.25, Apache-2.0) figfont_words.txt lists in their order. Train is items
0-39,999 and test 40,000-44,999, as in the paper's script.

The fonts are not the paper's. There `pyfiglet.getFonts()` follows the order of the directory, so
the same seed gives other data on another file system: no two machines need agree, and only the
authors' copy on the hub (gaotang/figlet_font) has their items. Here fonts are sorted, pyfiglet is
pinned, and the hash of each split is checked. Which fonts are used is a rule (`legible`) and not a
list; with `reasoning-gym` installed, `python -m benchmarks.paper.prepare figfont --generator
reasoning-gym` uses that package and its list of fonts, sorted.
"""

import hashlib
import importlib.metadata
import importlib.resources
import json
import random
import string
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyfiglet

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.tasks import Prompt

SEED = 42
SPLITS = {"train": range(40_000), "test": range(40_000, 45_000)}
PYFIGLET = "1.0.2"
WORDS = Path(__file__).with_name("figfont_words.txt")
QUESTIONS = (
    "What word does this say?\n\n{drawing}",
    "Please read the following figlet font:\n\n{drawing}",
)
SHA256 = {  # of the items, one JSON object a line, with the fonts of `legible`
    "train": "e8edc4d3fc0048f3d16970621fff07f7ad96f4fc84c00557189d7e4e69917f5c",
    "test": "a214807d34645e5171af6d7b537a631ff227a567cb49eba88b8536f7d07c769f",
}

Record = dict[str, Any]


@cache
def words() -> tuple[str, ...]:
    return tuple(WORDS.read_text(encoding="ascii").split())


@cache
def figlet(font: str) -> pyfiglet.Figlet:
    """Reading a font takes ten times as long as drawing with it, so it is read once."""
    return pyfiglet.Figlet(font)


def legible(font: str) -> bool:
    """Whether words can be read from their drawings.

    The font runs left to right, no capital is blank or drawn like another one, and each takes two
    rows or more (fonts of one row are ciphers: Morse, hexadecimal, rot13).
    """
    drawings = [
        [line.rstrip() for line in figlet(font).renderText(letter).split("\n") if line.strip()]
        for letter in string.ascii_uppercase
    ]
    distinct = len({tuple(rows) for rows in drawings}) == len(drawings)
    return figlet(font).direction == "left-to-right" and distinct and min(map(len, drawings)) >= 2


@cache
def fonts() -> tuple[str, ...]:
    """The legible fonts of pyfiglet's own folder, sorted.

    `getFonts` would add those of the system. Takes about two seconds, once.
    """
    version = importlib.metadata.version("pyfiglet")
    if version != PYFIGLET:
        raise ConfigError(
            f"figfont: pyfiglet {version} is installed, and would draw other items: pip install "
            f"pyfiglet=={PYFIGLET}"
        )
    files = (Path(file.name) for file in importlib.resources.files("pyfiglet.fonts").iterdir())
    names = sorted({file.stem for file in files if file.suffix in (".flf", ".tlf")})
    return tuple(name for name in names if legible(name))


def item(index: int) -> Record:
    """Item `index`: id, question, answer (capitals) and font."""
    chance = random.Random(SEED + index)
    answer = chance.choice(words()).upper()
    font = chance.choice(fonts())
    question = chance.choice(QUESTIONS).format(drawing=figlet(font).renderText(" ".join(answer)))
    return {"id": str(index), "question": question, "answer": answer, "font": font}


def items(split: str, make: Callable[[int], Record] = item) -> Iterator[Record]:
    """The items of "train" or "test", in order, made as they are asked for."""
    if split not in SPLITS:
        raise ConfigError(f"figfont: no split {split!r}; there are {', '.join(SPLITS)}")
    return map(make, SPLITS[split])


def test_items() -> Iterator[Record]:
    return items("test")


def reasoning_gym_item() -> Callable[[int], Record]:
    """`item` by reasoning-gym itself, its fonts sorted.

    Raises ConfigError where the package is missing.
    """
    try:
        import reasoning_gym
        from reasoning_gym.cognition import figlet_fonts
    except ImportError:
        raise ConfigError(
            "--generator reasoning-gym: the package is not installed: pip install reasoning-gym"
        ) from None
    figlet_fonts.OK_FONTS.sort()
    size = SPLITS["test"].stop
    dataset = reasoning_gym.create_dataset(
        "figlet_font", seed=SEED, size=size, min_word_len=2, max_word_len=5, space_letters=True
    )

    def make(index: int) -> Record:
        entry = dataset[index]
        return {
            "id": str(index),
            "question": entry["question"],
            "answer": entry["answer"],
            "font": entry["metadata"]["font"],
        }

    return make


def verified(records: Iterable[Record], expected: str) -> Iterator[Record]:
    """The records as they come, then a DataError unless `expected` is their sha256.

    It is the sha256 of one JSON object a line.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        yield record
    if digest.hexdigest() != expected:
        raise DataError(
            f"figfont: the items have the sha256 {digest.hexdigest()}, not {expected}: were files "
            "of pyfiglet changed?"
        )


def conversation(record: Record, prompt: Prompt) -> Record:
    """An item as the trainer reads it: id, and messages with the prompt of the task "figfont"."""
    turns = (
        ("system", prompt.system),
        ("user", prompt.user.format(**record)),
        ("assistant", record["answer"]),
    )
    return {
        "id": record["id"],
        "messages": [{"role": role, "content": content} for role, content in turns],
    }
