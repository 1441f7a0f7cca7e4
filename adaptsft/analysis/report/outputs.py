"""Evaluations of the runs: tables of adaptsft.evals with their standard errors, and a few answers
as text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptsft.analysis.report.findings import (
    LOW_ENTROPY,
    REPETITIVE,
    TRUNCATED,
    Finding,
    narrow,
    repeats,
)
from adaptsft.analysis.report.folder import RunFolder, mapping, number
from adaptsft.errors import UserError
from adaptsft.evals import samples
from adaptsft.evals.tables import Cell, Table, build

QUESTIONS = 3  # of each task, whose answers are shown
TASKS = 4


@dataclass
class Answer:
    run: int | None  # None: an evaluation that belongs to no run of this report
    label: str
    text: str
    scores: dict[str, bool | float | None]
    extracted: str = ""
    truncated: bool = False
    repeats: bool = False


@dataclass
class Question:
    task: str
    item: Any  # its id
    prompt: str
    gold: str
    answers: list[Answer] = field(default_factory=list)


@dataclass
class Evaluations:
    tables: list[Table]
    questions: list[Question]
    best: dict[int, str]  # of each run
    findings: list[Finding]
    runs: dict[str, int]  # label of a row -> run


def read(runs: Sequence[RunFolder], given: Sequence[Path], notes: list[str]) -> Evaluations:
    """RUN/evals of every run, and the folders of --evals, which belong to the run whose model they
    name."""
    labels: dict[Path, str] = {}
    owner: dict[str, int] = {}
    own = {(run.path / "evals").resolve() for run in runs}
    given = [folder for folder in given if folder.resolve() not in own]  # it is shown anyhow
    for number_, run in enumerate(runs):
        folders = [run.path / "evals"] if (run.path / "evals").is_dir() else []
        folders += [
            folder
            for folder in given
            if _model(folder) in (run.path.resolve(), run.path.resolve() / "final")
        ]
        for i, folder in enumerate(folders):
            labels[folder] = run.label if i == 0 else f"{run.label} ({folder.name})"
            owner[labels[folder]] = number_
    labels |= {folder: str(folder) for folder in given if folder not in labels}
    readable = {}
    for folder, label in labels.items():
        try:
            build([folder])
            readable[folder] = label
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            notes.append(
                str(error)
                if isinstance(error, UserError)
                else f"{folder}: its results are damaged ({error!r}): score it again"
            )
    tables = _tables(readable, notes)
    found = Evaluations(tables, [], {}, [], owner)
    for folder, label in readable.items():
        _look(found, folder, label, owner.get(label))
    for table in tables:
        for (row, column), cell in table.cells.items():
            if cell.unit == "nats" and number(cell.value) < LOW_ENTROPY:
                whose, of = ([owner[row]], column) if row in owner else ([], f"{row}, {column}")
                found.findings.append(Finding(whose, narrow(of, cell.value)))
    for number_, run in enumerate(runs):
        labelled = [label for label, run_number in owner.items() if run_number == number_]
        found.best[number_] = _best(tables, labelled) or _best_in_training(run)
        _in_training(found, number_, run)
    found.questions = found.questions[: QUESTIONS * TASKS]
    return found


def _model(folder: Path) -> Path | None:
    """The model that an evaluation names, as a path."""
    for place in samples.folders(folder) if folder.is_dir() else []:
        try:
            return Path(samples.read_json(place / "run.json")["backend"]["model"]).resolve()
        except (UserError, KeyError, TypeError, ValueError, OSError):
            continue
    return None


def _tables(labels: dict[Path, str], notes: list[str]) -> list[Table]:
    if not labels:
        return []
    try:
        return build(list(labels), compare=len(labels) > 1, labels=labels)
    except (UserError, KeyError, TypeError, ValueError) as error:
        # other data, or other items: no pairs to compare
        notes.append(
            f"the evaluations cannot be compared item by item, so none is marked as best: {error}"
        )
        return build(list(labels), labels=labels)


def _look(found: Evaluations, folder: Path, label: str, run: int | None) -> None:
    """Take a few answers of every task, and count those that repeat themselves."""
    for place in samples.folders(folder):
        if not (place / "scored.jsonl").is_file():
            continue
        task = "/".join(place.relative_to(folder).parts) or place.name
        try:
            rows = [
                row
                for row in samples.read_lines(place / "scored.jsonl")[0]
                if isinstance(mapping(row).get("output"), str)
            ]
        except UserError:
            continue
        if not rows:
            continue
        whose = [] if run is None else [run]
        looping = sum(repeats(row["output"]) for row in rows) / len(rows)
        cut = sum(row.get("finish_reason") == "length" for row in rows) / len(rows)
        if looping > REPETITIVE:
            text = f"{task}: {looping:.0%} of the answers ({label}) end in a loop"
            found.findings.append(Finding(whose, text))
        if cut > TRUNCATED:
            text = f"{task}: {cut:.0%} of the answers ({label}) ran into the longest length allowed"
            found.findings.append(Finding(whose, text))
        wanted = [question for question in found.questions if question.task == task]
        if not wanted:
            wanted = [
                Question(task, row.get("item_id"), str(row.get("prompt", "")), str(row.get("gold")))
                for row in _few(rows)
            ]
            found.questions += wanted
        for question in wanted:
            row = next((row for row in rows if row.get("item_id") == question.item), None)
            if row is not None:
                question.answers.append(_answer(run, label, row))


def _answer(run: int | None, label: str, row: dict[str, Any]) -> Answer:
    found = mapping(row.get("extracted")).items()
    return Answer(
        run,
        label,
        row["output"],
        mapping(row.get("scores")),
        extracted="; ".join(f"{value} ({name})" for name, value in found if value is not None),
        truncated=row.get("finish_reason") == "length",
        repeats=repeats(row["output"]),
    )


def _few(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row that is right, one that is wrong, and the next ones, of different items."""

    def right(row: dict[str, Any]) -> bool:
        return any(
            value is True or number(value) >= 1 for value in mapping(row.get("scores")).values()
        )

    firsts = [next((row for row in rows if right(row) is wanted), None) for wanted in (True, False)]
    of_item: dict[str, dict[str, Any]] = {}
    for row in (*firsts, *rows):
        if row is not None:
            of_item.setdefault(str(row.get("item_id")), row)
    return list(of_item.values())[:QUESTIONS]


def _best(tables: list[Table], labels: list[str]) -> str:
    """The cell of these rows with the highest score."""
    cells = [
        (cell, column)
        for table in tables
        for (row, column), cell in table.cells.items()
        if row in labels and number(cell.value) >= 0 and not table.sampled
    ]
    if not cells:
        return ""
    cell, column = max(cells, key=lambda found: found[0].value)
    return f"{column} {score(cell)} (n = {cell.n:,})"


def score(cell: Cell) -> str:
    return cell.figure() + (" %" if cell.unit == "percent" else "")


def _best_in_training(run: RunFolder) -> str:
    found = [
        (number(value), f"{task} {name}", row["step"])
        for row in run.tasks
        for task, values in mapping(row["tasks"]).items()
        for name, value in mapping(values).items()
        if name not in ("truncated", "entropy") and "/" not in name and number(value) >= 0
    ]
    if not found:
        return ""
    value, name, step = max(found, key=lambda entry: (entry[0], entry[2]))
    return f"{name} {100 * value:.1f} % at step {step:,}, on the few items evaluated in training"


def _in_training(found: Evaluations, number_: int, run: RunFolder) -> None:
    """The answers that the last evaluation in training kept."""
    for task, values in mapping(run.tasks[-1]["tasks"]).items() if run.tasks else []:
        kept = mapping(values).get("samples")
        for i, sample in enumerate(kept[:QUESTIONS] if isinstance(kept, list) else []):
            text = mapping(sample).get("output")
            if not isinstance(text, str):
                continue
            title = f"{task}, in training"
            same = (q for q in found.questions if (q.task, q.item) == (title, i))
            question = next(same, None)
            if question is None:
                question = Question(
                    title, i, str(sample.get("prompt", "")), str(sample.get("gold"))
                )
                found.questions.append(question)
            label = f"{run.label}, step {run.tasks[-1]['step']:,}"
            question.answers.append(
                Answer(number_, label, text, mapping(sample.get("scores")), repeats=repeats(text))
            )
