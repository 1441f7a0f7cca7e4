"""From a task's sources to its items: found, hashed, counted, mapped.

What is not exactly what the task names is refused.
"""

import gzip
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.tasks import Source, Task

Record = dict[str, Any]


class Item(NamedTuple):
    """One question.

    `fields` hold what the prompt names and what graders read (`gold`, `options`, …).
    """

    id: str
    fields: Record


@dataclass(frozen=True)
class Items:
    items: list[Item]
    # of all items of the task, mapped: the same whether they came from a file or the hub
    sha256: str
    origin: str
    verified: bool  # against the hash of the real data

    def facts(self) -> Record:
        return {"sha256": self.sha256, "origin": self.origin, "verified": self.verified}


def load_items(task: Task, data_dir: Path | None = None) -> Items:
    """Every item of a task.

    Raises DataError where the data cannot be found, its sha256 or number is not the task's, or a
    record lacks a field; ConfigError where a library is missing.
    """
    source, records = _open(task, data_dir)
    read, where = READERS[source.reader], source.file or source.hub or source.generator
    items, seen = [], set()
    for number, record in enumerate(records):
        named = record | {
            ours: record[theirs] for ours, theirs in source.fields.items() if theirs in record
        }
        try:
            fields = read(named)
            item = Item(str(fields.pop("id", number)), fields)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{task.name}: {where}, record {number + 1}: {reason}; the record has "
                f"{', '.join(record)}"
            ) from None
        items.append(Item(f"{item.id}-{number}", fields) if item.id in seen else item)
        seen.add(item.id)
    if len(items) != task.items:
        raise DataError(
            f"{task.name}: {where} has {len(items)} items, the task names {task.items}: another "
            "version of the data?"
        )
    digest = hashlib.sha256(
        json.dumps(items, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()
    if not source.file and source.sha256 is not None and digest != source.sha256:
        raise DataError(
            f"{task.name}: the items of {where} have the sha256 {digest}, the task names "
            f"{source.sha256}: other data"
        )
    return Items(
        items, digest, f"{where} ({source.origin})" if source.origin else where, source.verified
    )


def _open(task: Task, data_dir: Path | None) -> tuple[Source, Iterator[Record]]:
    for source in task.sources:
        if source.generator:
            return source, GENERATORS[source.generator]()
        if data_dir is not None and source.file and (path := data_dir / source.file).is_file():
            return source, _file_records(path, source, task)
    if data_dir is not None:
        wanted = [
            f"{data_dir / source.file} ({source.origin or source.hub})"
            for source in task.sources
            if source.file
        ]
        raise DataError(
            f"{task.name}: found none of its files under --data-dir: "
            f"{'; '.join(wanted) or 'the task names none'}"
        )
    for source in task.sources:
        if source.hub_file:
            from huggingface_hub import hf_hub_download

            try:
                path = hf_hub_download(
                    source.hub, source.hub_file, repo_type="dataset", revision=source.revision
                )
            # whatever the hub client raises, without network or without such a data set
            except Exception as error:
                raise _unreachable(task, source, error) from None
            return source, _file_records(Path(path), source, task)
        if source.hub:
            import datasets

            try:
                rows = datasets.load_dataset(
                    source.hub, source.subset, split=source.split, revision=source.revision
                )
            except Exception as error:
                raise _unreachable(task, source, error) from None
            return source, iter(rows)  # type: ignore[arg-type]
    files = ", ".join(f"{source.file} from {source.origin}" for source in task.sources)
    raise DataError(
        f"{task.name}: its data is not on the hub: fetch {files} and name the folder by --data-dir"
    )


def _unreachable(task: Task, source: Source, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    offline = [source.file for source in task.sources if source.file]
    other = (
        f", or fetch {' or '.join(offline)} and name its folder by --data-dir" if offline else ""
    )
    owners = " after asking its owners for access" if task.gated else ""
    return DataError(
        f"{task.name}: the hub does not give {source.hub}: {reason}. Log in{owners}{other}"
    )


def _file_records(path: Path, source: Source, task: Task) -> Iterator[Record]:
    """The records of a .jsonl, .jsonl.gz, .json, .tsv or .parquet file, once its sha256 is the
    source's.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if source.sha256 is not None and digest != source.sha256:
        raise DataError(
            f"{task.name}: {path} has the sha256 {digest}, the task names {source.sha256}: "
            "another version, or damaged"
        )
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return iter(pq.read_table(path).to_pylist())
    try:
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if path.suffix == ".tsv":
        header, *rows = (line.split("\t") for line in text.splitlines())
        return iter([dict(zip(header, row, strict=False)) for row in rows])
    if path.suffix == ".json":
        values = _parse(text, str(path))
        if source.key:
            if source.key not in values:
                raise DataError(f"{path}: no {source.key!r} in it, but {', '.join(values)}")
            values = values[source.key]
        return iter(
            [{"id": key} | value for key, value in values.items()]
            if isinstance(values, dict)
            else values
        )
    return iter(
        [
            _parse(line, f"{path}:{number}")
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        ]
    )


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: not JSON: {error}") from None


# Readers: one record -> {id (optional), what the prompt names, what graders read}. A KeyError names
# the missing field.


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
    """The layout of MedXpertQA's files:

    `Answer Choices: (A) … (B) …` at the end of the question, and a list of right letters.
    """
    question, _, listed = record["question"].rpartition("\nAnswer Choices: ")
    options: dict[str, str] = {}
    for letter, following in itertools.pairwise(
        "ABCDEFGHIJK"
    ):  # in order: an option may itself contain "(A) "
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
    """The published tsv (Question Stem, Choices, Answer Key), or the hub's layout (question_stem,
    choices, answerKey).
    """
    if "question_stem" in record:
        options = dict(zip(record["choices"]["label"], record["choices"]["text"], strict=True))
        return _multiple_choice(record["question_stem"], options, record["answerKey"], record["id"])
    parsed = _inline_choices(
        {
            "question": "\nAnswer Choices: " + record["Choices"],
            "label": [record["Answer Key"]],
            "id": record["ID"],
        }
    )
    return _multiple_choice(
        record["Question Stem"], parsed["options"], parsed["gold"], record["ID"]
    )


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
    """HumanEval+ and MBPP+; tests and oracles stay in the file, which the code grader reads itself."""
    content = hashlib.sha256(
        json.dumps(record, sort_keys=True).encode()
    ).hexdigest()  # tells versions apart whose prompts are the same
    return {
        "id": record["task_id"],
        "task_id": record["task_id"],
        "question": record["prompt"].strip() + "\n",
        "sha256": content,
    }


def _alpaca(record: Record) -> Record:
    """AlpacaEval's instructions, in their official order: the difficulty of an instruction is
    joined by its row.
    """
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


def _figfont() -> Iterator[Record]:
    try:
        from adaptsft.evals import figfont
    except ImportError as error:
        raise ConfigError(f"figfont needs {error.name}: pip install 'adaptsft[eval]'") from None
    return figfont.test_items()


GENERATORS: dict[str, Callable[[], Iterator[Record]]] = {"figfont": _figfont}
