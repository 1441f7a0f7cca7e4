"""Tasks: a question in, a string out. The model reads `<upper>please=` and writes `PLEASE`.

A family is a generator of questions and the tasks that are asked about them: those of the
pretraining mixture, and four that are not, each with another relation to what the model knows by
then.
"""

import json
import os
import random
import string
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from adaptsft.model.tiny import char_tokenizer

CHARACTERS = string.ascii_letters + string.digits + string.punctuation
# at each position the characters that are right; a plain string where one is
Answer = Sequence[str]


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
    middle: Task  # two of them in one, which was never asked
    weak: Task  # a new tag, and symbols that were never written
    redefined: Task  # the tag of one of them with another meaning: the model is confidently wrong
    open: Task  # a new tag, and several answers that are right

    def role(self, name: str) -> Task:
        return getattr(self, name)


def tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """One token per character, and one per tag."""
    tasks = (*family.pretrained, family.middle, family.weak, family.redefined, family.open)
    tags = dict.fromkeys(tag + ">" for task in tasks for tag in task.tag.split(">") if tag)
    return char_tokenizer(CHARACTERS, tags=tags)


def prompt(task: Task, question: str) -> str:
    return f"{task.tag}{question}="


def right(answer: Answer, given: str) -> bool:
    """Exact match with any of the answers that are right."""
    return len(given) == len(answer) and all(
        character in choices for character, choices in zip(given, answer, strict=True)
    )


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


# an error of a label: (the right character, alphabet, generator) -> another one
ERRORS: dict[str, Callable[[str, str, random.Random], str]] = {
    "uniform": lambda right, alphabet, generator: generator.choice(alphabet.replace(right, "")),
    "systematic": lambda right, alphabet, generator: alphabet[
        (alphabet.index(right) + 1) % len(alphabet)
    ],
}


@dataclass(frozen=True)
class Noise:
    """Each character of a label is wrong with probability `rate`."""

    kind: str = "uniform"
    rate: float = 0.0


def label(task: Task, question: str, noise: Noise, generator: random.Random) -> tuple[str, str]:
    """(the label that is trained on, the right answer that it was made from)."""
    clean = "".join(
        choices if len(choices) == 1 else generator.choice(choices)
        for choices in task.answer(question)
    )
    wrong = ERRORS[noise.kind]
    return "".join(
        wrong(c, task.alphabet, generator) if generator.random() < noise.rate else c for c in clean
    ), clean


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
    source = questions(family, zipf, False, f"train {seed}")
    generator = random.Random(f"labels {seed}")
    partial = path.with_suffix(f".{os.getpid()}")  # other workers may be writing the same file
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w") as file:
        for number in range(count):
            task, noise = parts[number % len(parts)]
            question = next(source)
            noisy, clean = label(task, question, noise, generator)
            file.write(
                json.dumps({"prompt": prompt(task, question), "completion": noisy, "clean": clean})
                + "\n"
            )
    partial.rename(path)
    return path
