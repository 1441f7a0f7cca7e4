"""The answers that are judged: a leaderboard's file, or a folder of generated answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptsft.errors import DataError
from adaptsft.evals import samples
from adaptsft.evals.samples import Samples

Record = dict[str, Any]


@dataclass(frozen=True)
class Outputs:
    """The answers of one model, in the official order of the instructions."""

    generator: str
    records: list[Record]  # instruction, output


def read_outputs(path: Path) -> Outputs:
    """A model_outputs.json of the leaderboard's layout, or a folder that `generate` wrote.

    Raises DataError.
    """
    if path.is_dir():
        return _generated(path)
    records = read_json_list(path, ("instruction", "output"))
    return Outputs(str(records[0].get("generator", path.stem)), records)


def _generated(path: Path) -> Outputs:
    folders = samples.folders(path)
    if len(folders) != 1:
        raise DataError(
            f"{path}: holds {len(folders)} evaluations; name the folder of one, such as "
            "OUT/alpaca_eval/T0.7"
        )
    folder = folders[0]
    asked = samples.read_json(folder / "run.json")
    answers = {
        sample["item_id"]: sample["output"]
        for sample in Samples(folder, -1).records.values()
        if sample["sample"] == 0
    }
    items = samples.read_lines(folder / "items.jsonl")[0]
    if missing := [item["id"] for item in items if item["id"] not in answers]:
        raise DataError(
            f"{folder}: {len(missing)} answers are missing, item {missing[0]} first: run generate "
            "again"
        )
    records = [
        {
            "instruction": item["fields"]["instruction"],
            "dataset": item["fields"]["dataset"],
            "output": answers[item["id"]],
        }
        for item in items
    ]
    return Outputs(str(asked["backend"]["objective"]), records)


def read_json_list(path: Path, keys: tuple[str, ...]) -> list[Record]:
    content = samples.read_json(path)
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}: must hold a JSON list of objects, and not be empty")
    for number, record in enumerate(content):
        if missing := [key for key in keys if not isinstance(record, dict) or key not in record]:
            raise DataError(f"{path}, item {number}: {', '.join(missing)} missing")
        for key in ("instruction", "output", "output_1", "output_2"):
            if key in keys and not isinstance(record[key], str):
                raise DataError(f"{path}, item {number}: {key} is {record[key]!r:.80}, not text")
    return content


def pairs_of(outputs: Outputs, reference: Outputs, limit: int | None = None) -> list[Record]:
    """One record per instruction, in the leaderboard's layout but for the judgement.

    Raises DataError where the instructions differ.
    """
    names = outputs.generator, reference.generator
    if len(outputs.records) != len(reference.records):
        raise DataError(
            f"{names[0]} answers {len(outputs.records)} instructions, {names[1]} "
            f"{len(reference.records)}"
        )
    pairs = []
    for number, (own, other) in enumerate(zip(outputs.records, reference.records, strict=True)):
        if own["instruction"] != other["instruction"]:
            raise DataError(
                f"item {number}: {names[0]} answers {own['instruction'][:60]!r}, {names[1]} "
                f"{other['instruction'][:60]!r}; both must hold the instructions in the official "
                "order"
            )
        pairs.append(
            {
                "instruction": own["instruction"],
                "output_1": other["output"],
                "generator_1": names[1],
                "dataset": own.get("dataset"),
                "output_2": own["output"],
                "generator_2": names[0],
            }
        )
    return pairs[:limit]
