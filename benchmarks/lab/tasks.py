"""Tasks: a question in, a string out. The model reads `<upper>please=` and writes `PLEASE`.

A family is a generator of questions and the tasks that are asked about them: those of the
pretraining mixture, and some that are not, each with another relation to what the model knows by
then. Questions and answers may have any length.
"""

import json
import os
import random
import string
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from adaptsft.model.tiny import char_tokenizer

CHARACTERS = string.ascii_letters + string.digits + string.punctuation
# a string; at each position the characters that are right; or a set of strings that are all right
Answer = Sequence[str] | frozenset[str] | set[str]


@dataclass(frozen=True)
class Task:
    """`tag` + question + "=" is the prompt."""

    tag: str
    answer: Callable[[str], Answer]
    alphabet: str  # the characters that answers, and their errors, are made of


@dataclass(frozen=True)
class Family:
    """The roles are named after what the pretrained model knows of them."""

    name: str
    question: Callable[[random.Random, bool], str]  # (generator, Zipf or uniform) -> a question
    pretrained: tuple[Task, ...]  # the mixture that the model is pretrained on
    strong: Task  # one of them
    middle: Task  # two of them in one, or a relative of one, which was never asked
    weak: Task  # a new tag, and symbols that were never written
    redefined: Task  # the tag of one of them with another meaning: the model is confidently wrong
    open: Task | None = None  # a new tag, and several answers that are right
    characters: str = CHARACTERS  # all that questions and answers are made of, a token each

    def role(self, name: str) -> Task:
        return getattr(self, name)

    def tasks(self) -> tuple[Task, ...]:
        more = (self.middle, self.weak, self.redefined, *([self.open] if self.open else []))
        return (*self.pretrained, *more)


def tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """One token per character, and one per tag."""
    tags = dict.fromkeys(tag + ">" for task in family.tasks() for tag in task.tag.split(">") if tag)
    characters = dict.fromkeys((*family.characters, "="))
    return char_tokenizer("".join(characters), tags=tags)


def prompt(task: Task, question: str) -> str:
    return f"{task.tag}{question}="


def right_strings(answer: Answer) -> list[str] | None:
    """Every answer that is right; None where they are given by position and more than one: their
    number grows with the length."""
    if isinstance(answer, str):
        return [answer]
    if isinstance(answer, set | frozenset):
        return sorted(answer)
    return ["".join(answer)] if all(len(choices) == 1 for choices in answer) else None


def right(answer: Answer, given: str) -> bool:
    """Exact match with any of the answers that are right."""
    if isinstance(answer, set | frozenset):
        return given in answer
    return len(given) == len(answer) and all(
        character in choices for character, choices in zip(given, answer, strict=True)
    )


def one_of(answer: Answer, generator: random.Random) -> str:
    """One of the answers that are right, each as likely."""
    if isinstance(answer, set | frozenset):
        return generator.choice(sorted(answer)) if len(answer) > 1 else next(iter(answer))
    return "".join(
        choices if len(choices) == 1 else generator.choice(choices) for choices in answer
    )


def longest(answer: Answer) -> int:
    """Characters of the longest answer that is right."""
    return max(map(len, answer)) if isinstance(answer, set | frozenset) else len(answer)


def is_held_out(question: str) -> bool:
    """Half of all questions, whatever the run, is never trained on."""
    return zlib.crc32(question.encode()) % 2 == 0


def questions(family: Family, zipf: bool, held_out: bool, seed: str) -> Iterator[str]:
    """Without end; the held-out ones or the others. The same seed gives the same ones."""
    generator = random.Random(seed)
    while True:
        question = family.question(generator, zipf)
        if is_held_out(question) == held_out:
            yield question


# an error of a character: (the right one, alphabet, generator) -> another one
ERRORS: dict[str, Callable[[str, str, random.Random], str]] = {
    "uniform": lambda right, alphabet, generator: generator.choice(alphabet.replace(right, "")),
    "systematic": lambda right, alphabet, generator: alphabet[
        (alphabet.index(right) + 1) % len(alphabet)
    ],
}


@dataclass(frozen=True)
class Noise:
    """`uniform` and `systematic`: each character of a label is wrong with probability `rate`.
    `swapped`: with this probability the label is the answer to another question, and wrong for this
    one. `cut`: with this probability it ends after a shorter part of the answer, of any length from
    one character as likely; an answer of one character stays."""

    kind: str = "uniform"
    rate: float = 0.0


def label(
    task: Task,
    question: str,
    noise: Noise,
    generator: random.Random,
    others: Iterator[str] | None = None,
) -> tuple[str, str]:
    """(the label that is trained on, the right answer that it was made from). `others` are further
    questions without end, which `swapped` takes its labels from."""
    answer = task.answer(question)
    clean = one_of(answer, generator)
    if noise.kind in ERRORS:
        wrong = ERRORS[noise.kind]
        noisy = "".join(
            wrong(c, task.alphabet, generator) if generator.random() < noise.rate else c
            for c in clean
        )
        return noisy, clean
    if generator.random() >= noise.rate:
        return clean, clean
    if noise.kind == "cut":
        return clean[: generator.randrange(1, len(clean))] if len(clean) > 1 else clean, clean
    assert noise.kind == "swapped" and others is not None, noise
    swapped = (one_of(task.answer(other), generator) for other in others)
    return next(one for one in swapped if not right(answer, one)), clean


class Example(NamedTuple):
    task: Task
    question: str
    label: str
    clean: str  # the right answer that the label was made from


def examples(
    family: Family, parts: Sequence[tuple[Task, Noise]], zipf: bool, seed: str
) -> Iterator[Example]:
    """Training examples without end, the parts in turn. The same seed gives the same ones."""
    others = questions(family, zipf, False, f"swapped {seed}")
    generator = random.Random(f"labels {seed}")
    for number, question in enumerate(questions(family, zipf, False, f"train {seed}")):
        task, noise = parts[number % len(parts)]
        yield Example(task, question, *label(task, question, noise, generator, others))


def write_examples(
    path: Path,
    family: Family,
    parts: Sequence[tuple[Task, Noise]],
    count: int,
    zipf: bool,
    seed: str,
) -> Path:
    """`count` prompt/completion lines, the parts in turn; the answer before the noise stands beside
    each as `clean`."""
    partial = path.with_suffix(f".{os.getpid()}")  # other workers may be writing the same file
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w") as file:
        for _, one in zip(range(count), examples(family, parts, zipf, seed), strict=False):
            line = {"prompt": prompt(one.task, one.question), "completion": one.label}
            file.write(json.dumps(line | {"clean": one.clean}) + "\n")
    partial.rename(path)
    return path
