"""What a result was made from: scores are told from those of answers that have changed since."""

from pathlib import Path
from typing import Any

from adaptsft.evals import samples
from adaptsft.evals.samples import Samples


def digest_of(folder: Path, asked: dict[str, Any]) -> str:
    """Of the task and the recorded answers that `asked`, its run.json, names; of a judge's task
    also of the judgements."""
    items, n = asked.get("item_ids"), asked["n"]
    wanted = None if asked["task"].get("runner") == "harness" else set(items or ())
    recorded = Samples(folder, -1).records
    answers = [
        {name: value for name, value in recorded[key].items() if name != "prompt"}
        for key in sorted(recorded)
        if wanted is None or (recorded[key]["item_id"] in wanted and recorded[key]["sample"] < n)
    ]
    judged = folder / "annotations.json"
    judgements = judged.read_text() if judged.is_file() else None
    limit = asked["data"].get("limit")
    return samples.digest(asked["task"], items, n, limit, answers, judgements)


def outdated(folder: Path, asked: dict[str, Any], result: dict[str, Any]) -> str | None:
    """Why `result`, a folder's result.json, does not hold any more, with the command; or None.

    A result of an older version, and a folder without its samples, are held against the settings
    alone.
    """
    if "made_from" in result and any(folder.glob("samples.rank*.jsonl")):
        same = result["made_from"] == digest_of(folder, asked)
    else:
        evaluated = result["task"]["n_items"], result["gen"]["n"]
        same = evaluated == (len(asked.get("item_ids", ())), asked["n"])
    if same:
        return None
    return (
        f"{folder}: was generated anew, or more of it, since it was scored: {score_command(folder)}"
    )


def score_command(folder: Path) -> str:
    return f"run `python -m adaptsft.evals score {folder}` first"
