"""Scored folders that are compared: which of two runs belong together, and how they are unlike."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adaptsft.errors import DataError
from adaptsft.evals import samples
from adaptsft.evals.compare import read_scored
from adaptsft.evals.origin import outdated, score_command
from adaptsft.evals.result import right_or_wrong
from adaptsft.files import distinct

Record = dict[str, Any]
SHOWN = 80  # characters of a setting that two runs do not share


@dataclass(frozen=True)
class Scored:
    """A scored folder of a task in one mode of decoding."""

    folder: Path
    asked: Record  # run.json
    result: Record  # result.json
    items: dict[str, list[Record]]  # the samples of each, from scored.jsonl

    @property
    def records(self) -> Iterable[Record]:
        return (record for records in self.items.values() for record in records)

    @cached_property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for record in self.records for name in record["scores"]))

    @cached_property
    def graders(self) -> list[str]:
        """Those whose verdicts can be compared with one another, as `score` did."""
        return right_or_wrong(self.records)


def folders_of(runs: list[Path]) -> list[dict[str, Path]]:
    """Of one or two runs TASK/MODE -> its folder, of all tasks; some are in both.

    Two folders of one task are a pair, however each was decoded. Raises ConfigError where a run is
    named twice, DataError where they have no task in common.
    """
    distinct(runs)
    found = [_folders(run) for run in runs]
    if len(runs) == 2 and all((run / "run.json").is_file() for run in runs):
        (a,), (b,) = found
        if a != b and a.partition("/")[0] == b.partition("/")[0]:
            return [{f"{a} and {b}": folder} for tasks in found for folder in tasks.values()]
    if not set.intersection(*map(set, found)):
        listed = "; ".join(f"{run} has {', '.join(t)}" for run, t in zip(runs, found, strict=True))
        raise DataError(
            f"no task was evaluated in both in the same way: {listed}. Two ways of decoding are "
            "compared by naming the folders of the task itself, RUN/TASK/MODE"
        )
    return found


def _folders(run: Path) -> dict[str, Path]:
    """TASK/MODE -> its folder. Raises DataError where there is none, or one twice."""
    found: dict[str, Path] = {}
    for folder in samples.folders(run):
        task = samples.read_json(folder / "run.json")["task"]["name"]
        name = f"{task}/{folder.resolve().name}"
        if name in found:
            raise DataError(
                f"{run}: has {name} twice ({found[name]} and {folder}): name the folder of one "
                "evaluation"
            )
        found[name] = folder
    if not found:
        raise DataError(f"{run}: no run.json below it: name the --out of an evaluation")
    return found


def read(folder: Path) -> Scored:
    """Raises DataError where it is not scored, or not all of it."""
    if not ((folder / "result.json").is_file() and (folder / "scored.jsonl").is_file()):
        raise DataError(f"{folder}: not scored yet: {score_command(folder)}")
    asked, result = (samples.read_json(folder / f"{name}.json") for name in ("run", "result"))
    if reason := outdated(folder, asked, result):
        raise DataError(reason)
    items: dict[str, list[Record]] = {}
    for record in read_scored(folder):
        items.setdefault(record["item_id"], []).append(record)
    if set(asked["item_ids"]) != items.keys():
        raise DataError(f"{folder}: scored.jsonl has other items: {score_command(folder)}")
    return Scored(folder, asked, result, items)


def unlike(a: Scored, b: Scored) -> list[str]:
    """Where two runs differ in more than their answers: a note each."""
    notes = []
    graded = [{one["name"]: one["version"] for one in run.result["grader"]} for run in (a, b)]
    other = [name for name in graded[0] if graded[1].get(name, graded[0][name]) != graded[0][name]]
    if other:
        again = " and ".join(f"`python -m adaptsft.evals score {run.folder}`" for run in (a, b))
        notes.append(
            f"{', '.join(other)}: A and B were graded by other versions; {again} grade both by the "
            "one that is installed"
        )
    for letter, run, rest in (("A", a, b.metrics), ("B", b, a.metrics)):
        if only := [name for name in run.metrics if name not in rest]:
            notes.append(
                f"{', '.join(only)}: only in {letter}. `generate` with the same arguments as "
                "before, and then `score`, grade the other by it too; no answer is generated again"
            )
    settings = [
        {key: run.result["gen"][key] for key in ("template", "n")} | run.result["gen"]["params"]
        for run in (a, b)
    ]
    for name in {**settings[0], **settings[1]}:
        x, y = (run.get(name) for run in settings)
        notes += [f"{name}: {x} in A, {y} in B"] if x != y else []
    notes += other_task(a.asked, b.asked)
    both = len(a.items.keys() & b.items.keys())
    if both < max(len(a.items), len(b.items)):
        notes.append(
            f"A has {len(a.items)} items, B {len(b.items)}: the {both} of both are compared"
        )
    return notes


def other_task(a: Record, b: Record, names: tuple[str, str] = ("A", "B")) -> list[str]:
    """Where the tasks of two run.json are not asked or graded alike: a note each."""
    notes = []
    for key in ("version", "prompt", "grading"):
        x, y = (_leaves(asked["task"].get(key), f"task's {key}") for asked in (a, b))
        for name in {**x, **y}:
            left, right = x.get(name), y.get(name)
            if left != right:
                notes.append(f"{name}: {_short(left)} in {names[0]}, {_short(right)} in {names[1]}")
    return notes


def _leaves(value: Any, name: str) -> Record:
    """{name.key.key: value} of a nested mapping."""
    if not isinstance(value, dict):
        return {name: value}
    found: Record = {}
    for key, part in value.items():
        found |= _leaves(part, f"{name}.{key}")
    return found


def _short(value: Any) -> str:
    text = samples.to_json(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
