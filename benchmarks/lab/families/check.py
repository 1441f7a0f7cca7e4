"""What is asked of a family before anything runs."""

import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

from adaptsft.errors import require
from benchmarks.lab.tasks import Family, Task, is_held_out, right_strings

LOOKED_AT = 400  # questions


def check(path: Path, family: Any) -> None:
    """Raise ConfigError unless the lab can work with this family, as far as some questions show."""
    require(isinstance(family, Family), f"{path}: FAMILY is no benchmarks.lab.tasks.Family")
    where = f"{path}: family {family.name!r}"
    require(
        isinstance(family.name, str) and re.fullmatch(r"[\w+-]+", family.name) is not None,
        f"{where}: its name becomes a folder: use letters, digits, _, + and - only",
    )
    tags = [task.tag for task in family.pretrained]
    require(len(set(tags)) == len(tags) > 0, f"{where}: `pretrained` needs tasks, each its own tag")
    require(
        family.strong in family.pretrained,
        f"{where}: the task `strong` ({family.strong.tag}) is not in `pretrained`",
    )
    require(
        family.redefined.tag in tags,
        f"{where}: `redefined` has the tag {family.redefined.tag}, which is no tag of `pretrained`",
    )
    for role in ("middle", "weak", "open"):
        task = family.role(role)
        require(
            task is None or task.tag not in tags,
            f"{where}: `{role}` has the tag of a task of `pretrained`: {task.tag if task else ''}",
        )
    questions = _questions(where, family)
    for task in family.tasks():
        _check_task(f"{where}, task {task.tag}", family, task, questions)


def _questions(where: str, family: Family) -> list[str]:
    generator = random.Random(0)
    questions = []
    for number in range(2 * LOOKED_AT):
        question = family.question(generator, number % 2 == 1)
        require(
            isinstance(question, str) and question != "",
            f"{where}: question() gave {question!r}; it must be a string, and not empty",
        )
        unknown = sorted(set(question) - set(family.characters))
        require(
            not unknown,
            f"{where}: the question {question!r} has characters that the tokenizer lacks: "
            f"{''.join(unknown)!r}; name them in `characters`",
        )
        questions.append(question)
    sides = {is_held_out(question) for question in questions}
    require(
        len(sides) == 2,
        f"{where}: of {len(questions)} questions, {len(set(questions))} of them distinct, "
        f"{'all' if sides == {True} else 'none'} are held out; a family needs more questions",
    )
    return questions


def _check_task(where: str, family: Family, task: Task, questions: list[str]) -> None:
    require(
        re.fullmatch(r"(<[^<>]+>)+", task.tag) is not None,
        f"{where}: a tag is written <so>, or <so><and so>",
    )
    require(
        len(set(task.alphabet)) > 1,
        f"{where}: its alphabet {task.alphabet!r} needs two characters, for errors",
    )
    seen = set()
    for question in islice(dict.fromkeys(questions), LOOKED_AT):
        answer = task.answer(question)
        require(
            isinstance(answer, (str, list, tuple, set, frozenset))
            and len(answer) > 0
            and all(isinstance(part, str) and part for part in answer),
            f"{where}: the answer to {question!r} is {answer!r}; it must be a string, a list of "
            "the characters that are right at each position, or a set of strings; none empty",
        )
        used = set("".join(answer))
        unknown = sorted(used - set(family.characters))
        require(
            not unknown,
            f"{where}: the answer to {question!r} has characters that the tokenizer lacks: "
            f"{''.join(unknown)!r}; name them in `characters`",
        )
        strange = sorted(used - set(task.alphabet))
        require(
            not strange,
            f"{where}: the answer to {question!r} has characters that are not in its alphabet: "
            f"{''.join(strange)!r}",
        )
        seen.add(str(right_strings(answer) or list(answer)))
    require(len(seen) > 1, f"{where}: gives one answer to all questions")
