"""Generated tasks: rewrite a word of six letters. The model reads `<upper>please=` and writes `PLEASE`.

Letters are as skewed as in a language (Zipf: the k-th letter has a weight of 1/k), which is what makes a new task hard for objectives
that ignore unlikely tokens: the symbols of rare letters are rare too.
"""

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from adaptsft.tiny import char_tokenizer

LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # by frequency in English
WEIGHTS = [1 / rank for rank in range(1, 27)]
SYMBOLS = "#$%&*+-/:;?@^~!.,()[]{}1_0"  # written by no task but the cipher
CIPHER: dict[str, str] = dict(zip(LETTERS, SYMBOLS, strict=True))
LENGTH = 6


class Task(NamedTuple):
    answer: Callable[[str], str]  # word -> its rewriting
    alphabet: str  # the characters that an answer is made of


TASKS = {
    "upper": Task(str.upper, string.ascii_uppercase),
    "copy": Task(str, string.ascii_lowercase),
    "next": Task(lambda word: "".join(chr((ord(c) - 96) % 26 + 97) for c in word), string.ascii_lowercase),
    "reverse": Task(lambda word: word[::-1], string.ascii_lowercase),
    "cipher": Task(lambda word: "".join(CIPHER[c] for c in word), SYMBOLS),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, and one per task."""
    return char_tokenizer(string.ascii_letters + SYMBOLS + "=", tags=[f"<{name}>" for name in TASKS])


def prompt(task: str, word: str) -> str:
    return f"<{task}>{word}="


def held_out_words(count: int) -> list[str]:
    """The words that results are measured on. They depend on nothing but their number, and no training file holds any of them."""
    generator, words = random.Random("held out"), dict[str, None]()
    while len(words) < count:
        words[_word(generator)] = None
    return list(words)


def write_examples(path: Path, tasks: list[str], count: int, noise: float, seed: int, held_out: int) -> Path:
    """`count` prompt/completion lines, the tasks in turn, without the held-out words. Each character of a completion is replaced, with
    probability `noise`, by another of the task's alphabet; what it should have been stands beside it as `clean`."""
    generator, without = random.Random(f"{seed} {tasks}"), set(held_out_words(held_out))
    with path.open("w") as file:
        for number in range(count):
            name = tasks[number % len(tasks)]
            word = _word(generator)
            while word in without:
                word = _word(generator)
            clean = TASKS[name].answer(word)
            noisy = "".join(_another(c, TASKS[name].alphabet, generator) if generator.random() < noise else c for c in clean)
            file.write(json.dumps({"prompt": prompt(name, word), "completion": noisy, "clean": clean}) + "\n")
    return path


def _word(generator: random.Random) -> str:
    return "".join(generator.choices(LETTERS, WEIGHTS, k=LENGTH))


def _another(character: str, alphabet: str, generator: random.Random) -> str:
    return generator.choice(alphabet.replace(character, ""))
