"""Training data for OpenBookQA with clean or noisy labels, in the prompt of the task "openbookqa".

The paper trains on right labels, and on labels of which "small amounts" are wrong (appendix H.4).
Its authors' script makes 30 % of them wrong, each other option as likely
(data/data_process_knowledge_memorization.py of GaotangLi/Beyond-Log-Likelihood@89e4b0c27a73). Here
the noise is explicit: its rate, its kind, its seed. `python -m benchmarks.paper.prepare
openbookqa` writes the data; evaluation is the tasks `openbookqa` (generated) and
`openbookqa_likelihood`.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.prompts import fill
from adaptsft.evals.readers import READERS
from adaptsft.evals.tasks import Prompt

Question = dict[str, Any]  # id, question, listed, options {letter: text}, gold (a letter)


def uniform(letters: list[str], gold: str, chance: random.Random) -> str:
    """Any of the wrong options, each as likely."""
    return chance.choice([letter for letter in letters if letter != gold])


def structured(letters: list[str], gold: str, chance: random.Random) -> str:
    """The option after the right one, A after the last: a mistake that can be learned."""
    return letters[(letters.index(gold) + 1) % len(letters)]


KINDS: dict[str, Callable[[list[str], str, random.Random], str]] = {
    "uniform": uniform,
    "structured": structured,
}


@dataclass(frozen=True)
class Noise:
    """`rate`: share of the questions with a wrong label, exact but for rounding to whole ones."""

    rate: float = 0.0
    kind: str = "uniform"  # a key of KINDS
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"--noise-rate {self.rate}: must be from 0 to 1")
        if self.kind not in KINDS:
            raise ConfigError(f"--noise-kind {self.kind}: choose one of {', '.join(KINDS)}")


def labels(questions: list[Question], noise: Noise) -> list[str]:
    """The label of each question.

    With the same seed a higher rate adds mistakes and keeps those of the lower one.
    """
    order = random.Random(noise.seed).sample(range(len(questions)), len(questions))
    letters = [question["gold"] for question in questions]
    for index in order[: round(noise.rate * len(questions))]:
        chance = random.Random(f"{noise.seed} {index}")
        options = list(questions[index]["options"])
        letters[index] = KINDS[noise.kind](options, letters[index], chance)
    return letters


def questions_of(records: Iterable[tuple[str, dict[str, Any]]]) -> list[Question]:
    """Of (place, record) in the layout of the hub's allenai/openbookqa or of the published tsv.

    Raises DataError, naming the place.
    """
    questions = []
    for place, record in records:
        try:
            questions.append(READERS["openbookqa"](record))
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error)
            if isinstance(error, KeyError):
                reason = f"column {error} is missing; the record has {', '.join(record)}"
            raise DataError(f"{place}: {reason}") from None
    return questions


def tsv_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of a train.tsv of OpenBookQA-V1-Sep2018 (Data/Main). Raises DataError."""
    try:
        header, *rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as tab-separated text: {error}") from None
    return (
        (f"{path}, line {number}", dict(zip(header, row, strict=False)))
        for number, row in enumerate(rows, 2)
    )


def training_record(question: Question, label: str, prompt: Prompt) -> dict[str, Any]:
    """A record for the trainer (id, prompt, completion), with the prompt of the task "openbookqa".

    Besides, `gold` (the right letter) and `noisy` (whether the completion is another one).
    """
    return {
        "id": question["id"],
        "prompt": fill(prompt.user, question),
        "completion": label,
        "gold": question["gold"],
        "noisy": label != question["gold"],
    }
