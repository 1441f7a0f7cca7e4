"""Training data for OpenBookQA with clean or noisy labels, in the prompt of the task "openbookqa".

The paper trains on right labels, and on labels of which "small amounts" are wrong (appendix H.4); it says neither how many nor how. Here
the noise is explicit: its rate, its kind, its seed. Evaluation is the tasks `openbookqa` (generated) and `openbookqa_likelihood`.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptsft.errors import ConfigError, DataError, UserError
from adaptsft.evals.data import READERS
from adaptsft.evals.prompts import fill
from adaptsft.evals.tasks import load_task

Question = dict[str, Any]  # id, question, listed, options {letter: text}, gold (a letter)


def uniform(letters: list[str], gold: str, chance: random.Random) -> str:
    """Any of the wrong options, each as likely."""
    return chance.choice([letter for letter in letters if letter != gold])


def structured(letters: list[str], gold: str, chance: random.Random) -> str:
    """The option after the right one, A after the last: a mistake that can be learned."""
    return letters[(letters.index(gold) + 1) % len(letters)]


KINDS: dict[str, Callable[[list[str], str, random.Random], str]] = {"uniform": uniform, "structured": structured}


@dataclass(frozen=True)
class Noise:
    """`rate`: share of the questions that get a wrong label, exactly (rounded to a whole number of them)."""

    rate: float = 0.0
    kind: str = "uniform"  # a key of KINDS
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"--noise-rate {self.rate}: must be from 0 to 1")
        if self.kind not in KINDS:
            raise ConfigError(f"--noise-kind {self.kind}: choose one of {', '.join(KINDS)}")


def labels(questions: list[Question], noise: Noise) -> list[str]:
    """The letter that each question is taught. With the same seed a higher rate adds mistakes and keeps those of the lower one."""
    order = random.Random(noise.seed).sample(range(len(questions)), len(questions))
    taught = [question["gold"] for question in questions]
    for index in order[: round(noise.rate * len(questions))]:
        chance = random.Random(f"{noise.seed} {index}")
        taught[index] = KINDS[noise.kind](list(questions[index]["options"]), taught[index], chance)
    return taught


def read_questions(path: Path | None) -> list[Question]:
    """Of a published train.tsv (OpenBookQA-V1-Sep2018, Data/Main), or without a path of the hub's allenai/openbookqa. Raises DataError."""
    if path is None:
        import datasets

        try:
            records = list(datasets.load_dataset("allenai/openbookqa", "main", split="train"))
        except Exception as error:  # whatever the hub client raises
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"the hub does not give allenai/openbookqa: {reason}; name a train.tsv by --data") from None
    else:
        try:
            header, *rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as tab-separated text: {error}") from None
        records = [dict(zip(header, row, strict=False)) for row in rows]
    questions = []
    for number, record in enumerate(records, 2):
        try:
            questions.append(READERS["openbookqa"](dict(record)))
        except (KeyError, ValueError) as error:
            reason = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path or 'allenai/openbookqa'}, line {number}: {reason}") from None
    return questions


def write(questions: list[Question], noise: Noise, out: Path) -> int:
    """Write one conversation a line: id, messages, gold (what is right), noisy (whether another letter is taught). Returns how many are."""
    prompt = load_task("openbookqa").prompt
    partial, wrong = out.with_name(out.name + ".tmp"), 0
    with open(partial, "w", encoding="utf-8") as file:
        for question, taught in zip(questions, labels(questions, noise), strict=True):
            asked = {"role": "user", "content": fill(prompt.user, question)}
            noisy = taught != question["gold"]
            wrong += noisy
            row = {
                "id": question["id"],
                "messages": [asked, {"role": "assistant", "content": taught}],
                "gold": question["gold"],
                "noisy": noisy,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(partial, out)
    return wrong


def main(arguments: list[str]) -> int:
    parse = argparse.ArgumentParser(prog="python -m adaptsft.evals.openbookqa", description=__doc__.splitlines()[0] if __doc__ else None)
    parse.add_argument("out", type=Path, help="OUT.jsonl, for data.path of adaptsft.train")
    parse.add_argument("--data", type=Path, help="train.tsv of OpenBookQA-V1-Sep2018 (default: the hub's allenai/openbookqa)")
    parse.add_argument("--noise-rate", type=float, default=0.0, help="share of labels that are made wrong, from 0 (default) to 1")
    parse.add_argument("--noise-kind", default="uniform", help="uniform: any other option; structured: always the next one")
    parse.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    options = parse.parse_args(arguments)
    noise = Noise(options.noise_rate, options.noise_kind, options.seed)
    questions = read_questions(options.data)
    wrong = write(questions, noise, options.out)
    print(f"{options.out}: {len(questions):,} questions, {wrong:,} with a wrong label ({noise.kind}, seed {noise.seed})")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"adaptsft.evals.openbookqa: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
