"""What a task may name under its sources: readers of records, and generators of them.

A reader makes an item's fields from one record of a data set: `id` (optional), what the prompt
names, and what graders read. A KeyError in it names the field that the record lacks. A new layout
is one function here and a line in READERS.
"""

import hashlib
import importlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from adaptsft.errors import ConfigError

Record = dict[str, Any]


def _fields(record: Record) -> Record:
    return {key: record[key] for key in ("id", "question", "gold") if key != "id" or key in record}


def _boxed_solution(record: Record) -> Record:
    """MATH: the gold is the last box of the solution, as in the paper's script."""
    return {"question": record["question"], "gold": last_boxed(record["solution"])}


def _minerva(record: Record) -> Record:
    """The same; its name tells the paper's grader to leave units in golds."""
    return _boxed_solution(record) | {"dataset": "minerva_math"}


def _answer(record: Record) -> Record:
    """AIME, AMC (whose answers are floats: 27.0)."""
    return {"question": record["question"], "gold": str(record["answer"])}


def _final_answer(record: Record) -> Record:
    """OlympiadBench: the first of its final answers, as in the paper's script."""
    return {"id": record["id"], "question": record["question"], "gold": record["final_answer"][0]}


def _gsm8k(record: Record) -> Record:
    """The number after ####, the layout of openai/grade-school-math."""
    return {
        "question": record["question"],
        "gold": record["answer"].split("####")[1].strip().replace(",", ""),
    }


def _choices(record: Record) -> Record:
    """The layout of m1's file: question, options {letter: text}, answer_idx."""
    return _multiple_choice(record["question"], dict(record["options"]), record["answer_idx"], None)


def _inline_choices(record: Record) -> Record:
    """The layout of MedXpertQA's files: a question that ends in its options, and a list of letters.

    The options are written `Answer Choices: (A) … (B) …`.
    """
    question, _, listed = record["question"].rpartition("\nAnswer Choices: ")
    options: dict[str, str] = {}
    # in order: an option may itself contain "(A) "
    for letter, following in itertools.pairwise("ABCDEFGHIJK"):
        text, _, listed = listed.removeprefix(f"({letter}) ").partition(f" ({following}) ")
        options[letter] = text.strip()
        if not listed:
            break
        listed = f"({following}) {listed}"
    return _multiple_choice(question, options, record["label"][0], record["id"])


def _pubmedqa(record: Record) -> Record:
    """PQA-L of pubmedqa/pubmedqa: the contexts, the question, yes/no/maybe."""
    options = {"A": "yes", "B": "no", "C": "maybe"}
    gold = next(letter for letter, text in options.items() if text == record["final_decision"])
    question = "\n".join([*record["CONTEXTS"], record["QUESTION"]])
    return _multiple_choice(question, options, gold, record["id"])


def _openbookqa(record: Record) -> Record:
    """The published tsv, with "Question Stem", "Choices" and "Answer Key", or the hub's layout."""
    if "question_stem" in record:
        options = dict(zip(record["choices"]["label"], record["choices"]["text"], strict=True))
        return _multiple_choice(record["question_stem"], options, record["answerKey"], record["id"])
    gold, stem = record["Answer Key"], record["Question Stem"]
    question = f"{stem}\nAnswer Choices: {record['Choices']}"
    return _inline_choices({"question": question, "label": [gold], "id": record["ID"]})


def _multiple_choice(
    question: str, options: dict[str, str], gold: str, identity: str | None
) -> Record:
    options = {letter: str(text) for letter, text in options.items() if text not in (None, "")}
    if gold not in options:
        raise ValueError(f"the answer {gold!r} is none of the options {', '.join(options)}")
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return ({} if identity is None else {"id": identity}) | {
        "question": question,
        "listed": listed,
        "options": options,
        "gold": gold,
    }


def _figfont_item(record: Record) -> Record:
    return {key: record[key] for key in ("id", "question", "answer")}


def _evalplus(record: Record) -> Record:
    """HumanEval+ and MBPP+. Tests stay in the file, where the code grader reads them.

    The sha256 of the record distinguishes versions with the same prompts.
    """
    return {
        "id": record["task_id"],
        "task_id": record["task_id"],
        "question": record["prompt"].strip() + "\n",
        "sha256": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest(),
    }


def _alpaca(record: Record) -> Record:
    """AlpacaEval's instructions, in their official order, by which difficulties are joined."""
    return {
        "question": record["instruction"],
        "instruction": record["instruction"],
        "dataset": record["dataset"],
    }


READERS: dict[str, Callable[[Record], Record]] = {
    "fields": _fields,
    "boxed_solution": _boxed_solution,
    "minerva": _minerva,
    "answer": _answer,
    "final_answer": _final_answer,
    "gsm8k": _gsm8k,
    "choices": _choices,
    "inline_choices": _inline_choices,
    "pubmedqa": _pubmedqa,
    "openbookqa": _openbookqa,
    "figfont": _figfont_item,
    "evalplus": _evalplus,
    "alpaca": _alpaca,
}


def last_boxed(text: str) -> str:
    r"""The content of the last \boxed{…} or \fbox{…}, braces balanced.

    Raises ValueError where there is none.
    """
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        raise ValueError("the solution has no \\boxed{}")
    first = text.index("{", start) + 1
    depth = 1
    for position in range(first, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[first:position]
    raise ValueError("the solution's last \\boxed{ is never closed")


# name -> "module:function" that yields records; imported when a task asks for it, as each may need
# packages of the extra `eval`
GENERATORS = {"figfont": "adaptsft.evals.figfont:test_items"}


def generate_records(name: str) -> Iterator[Record]:
    """The records of a generator. Raises ConfigError where a package that it needs is missing."""
    module, function = GENERATORS[name].split(":")
    try:
        generator = getattr(importlib.import_module(module), function)
    except ImportError as error:
        raise ConfigError(f"{name} needs {error.name}: pip install 'adaptsft[eval]'") from None
    return generator()
