"""Second stage: recorded answers -> verdicts of every grader of the task, and result.json.

Nothing is generated again.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from adaptsft.errors import DataError
from adaptsft.evals import metrics, samples
from adaptsft.evals.samples import Samples
from adaptsft.evals.tasks import Task, from_dict

SCHEMA_VERSION = 1
NOT_A_METRIC = ("unparsed", "timeout", "extracted", "error")  # of a verdict


@dataclass(frozen=True)
class Grading:
    """What graders are given beside the answers."""

    workers: int = 0  # processes; 0: all cores
    data_dir: Path | None = None  # for the code grader, whose tests stay in the data files
    allow_code_exec: bool = False


def score(folder: Path, grading: Grading) -> dict[str, Any]:
    """Grade a task-and-mode folder; returns what it writes to result.json.

    Raises DataError where answers are missing.
    """
    asked = samples.read_json(folder / "run.json")
    task = from_dict(asked["task"], str(folder / "run.json"))
    if task.runner == "harness":
        return _by_harness(folder, asked, task, grading)
    items = {row["id"]: row["fields"] for row in samples.read_lines(folder / "items.jsonl")[0]}
    answers = {(row["item_id"], row["sample"]): row for row in Samples(folder, -1).rows.values()}
    wanted = [(item_id, sample) for item_id in asked["item_ids"] for sample in range(asked["n"])]
    missing = [pair for pair in wanted if pair not in answers]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(wanted)} answers are missing, item {missing[0][0]} "
            "first: run generate again"
        )

    rows = [answers[pair] for pair in wanted]
    records = [
        items[row["item_id"]] | {"response": row["output"], "output": row["output"]} for row in rows
    ]
    verdicts = {name: grade(name, records, task, grading, folder) for name in task.graders}
    scored = [
        _scored(row, items[row["item_id"]], {name: verdicts[name][i] for name in verdicts})
        for i, row in enumerate(rows)
    ]
    tables = {
        name: np.array([row["scores"][name] for row in scored], dtype=float).reshape(
            len(asked["item_ids"]), asked["n"]
        )
        for name in scored[0]["scores"]
    }
    disagreements = [
        row
        for row in scored
        if len({row["scores"][name] for name in task.graders if name in row["scores"]}) > 1
    ]
    samples.write_lines(folder / "scored.jsonl", scored)
    samples.write_lines(folder / "disagreements.jsonl", disagreements)
    found = {name: value for table in tables.items() for name, value in _estimates(*table).items()}
    if "judge" in task.graders:
        found |= _length_controlled(folder, grading)
    result = _header(asked, task) | {
        "grader": [{"name": name, "version": grader_version(name)} for name in task.graders],
        "metrics": found,
        "per_sample_index_acc": {name: metrics.by_sample(table) for name, table in tables.items()},
        "rates": _rates(rows, verdicts),
        "disagreements": len(disagreements),
        "disagreements_path": "disagreements.jsonl",
        "samples_path": "scored.jsonl",
    }
    samples.write_json(folder / "result.json", result)
    return result


def _by_harness(
    folder: Path, asked: dict[str, Any], task: Task, grading: Grading
) -> dict[str, Any]:
    """lm-eval grades what it finds in the folder; it needs the data again."""
    from adaptsft.evals import harness

    data = asked["data"]
    data_dir = grading.data_dir or (data["dir"] and Path(data["dir"]))
    found = harness.evaluate(
        task.harness_task, None, folder, data_dir=data_dir, items=task.items, limit=data["limit"], seed=asked["seed"]
    )  # fmt: skip
    samples.write_lines(folder / "scored.jsonl", found.rows)
    asked |= {
        "data": data | {"sha256": found.data_sha256, "verified": False},
        "item_ids": [row["item_id"] for row in found.rows],
    }
    samples.write_json(folder / "run.json", asked)
    result = _header(asked, task) | {
        "grader": [{"name": "lm-eval", "version": found.settings["lm_eval"]}],
        "metrics": {name: _finite(estimate) for name, estimate in found.metrics.items()},
        "per_sample_index_acc": {},
        "rates": {
            "truncated": None,
            "error": None,
            "unparsed": {"lm-eval": found.rates.get("unparsed", 0.0)},
            "timeout": {},
        },
        "disagreements": 0,
        "disagreements_path": None,
        "samples_path": "scored.jsonl",
    }
    result["task"]["n_items"] = found.n_items
    if found.temperature is not None:  # answers, and no likelihoods: tables say so
        result["gen"]["params"] = {"temperature": found.temperature}
    samples.write_json(folder / "result.json", result)
    return result


def _finite(estimate: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in estimate.items()
    }


def grade(
    name: str, records: list[dict[str, Any]], task: Task, grading: Grading, folder: Path
) -> list[dict[str, Any]]:
    """The verdicts of one grader, in order.

    Raises ConfigError where it needs what was not given.
    """
    if name == "judge":
        preferences = _annotations(folder).preference
        if len(preferences) != len(records):
            raise DataError(
                f"{folder / 'annotations.json'}: {len(preferences)} judgements of {len(records)} "
                "answers: judge again"
            )
        if np.isnan(preferences).all():
            raise DataError(
                f"{folder / 'annotations.json'}: the judge chose in none of {len(records)} pairs: "
                "it must answer with m or M"
            )
        return [{"win_rate": None if math.isnan(p) else float(p)} for p in preferences]
    with tqdm(
        total=len(records), desc=f"{task.name} {name}", unit="answer", mininterval=1.0
    ) as bar:
        if name == "code":
            from adaptsft.evals.code import evalplus

            return evalplus.grade_task(records, task, grading, bar.update)
        from adaptsft.evals.graders import grade_all

        return grade_all(name, records, workers=grading.workers, progress=bar.update)


def _annotations(folder: Path) -> Any:
    """The judgements of a folder.

    Raises DataError, saying how to have them made, where there are none.
    """
    from adaptsft.evals.alpaca import read_annotations

    if not (folder / "annotations.json").is_file():
        how = f"python -m adaptsft.evals judge {folder} REFERENCE --out {folder} --judge …"
        raise DataError(
            f"{folder}: its answers have not been judged: `{how}`, then score (docs/alpaca_eval.md)"
        )
    return read_annotations(folder / "annotations.json")[0]


def _length_controlled(folder: Path, grading: Grading) -> dict[str, dict[str, Any]]:
    """The length-controlled win rate, where --data-dir holds alpaca/df_gamed.csv, which it is
    fitted with.
    """
    from adaptsft.evals.alpaca import evaluate

    gamed = grading.data_dir and grading.data_dir / "alpaca" / "df_gamed.csv"
    if gamed is None or not gamed.is_file():
        return {}
    found = evaluate(_annotations(folder), df_gamed=gamed)
    return {
        "lc_win_rate": {
            "value": found["lc_win_rate"] / 100,
            "se": found["lc_standard_error"] / 100,
            "n": found["n_total"],
        }
    }


def grader_version(name: str) -> str:
    """A hash of the graders' source: two results with the same one were graded by the same rules."""
    folder = Path(__file__).parent / ("code" if name == "code" else "graders")
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    ).hexdigest()[:16]


def metrics_of(name: str, verdict: dict[str, Any]) -> dict[str, Any]:
    """The booleans and numbers of a grader's verdict, None where it has no score; `correct` goes by
    the grader's name.
    """
    scores = {
        key: value
        for key, value in verdict.items()
        if key not in NOT_A_METRIC and isinstance(value, bool | int | float | None)
    }
    return {name if key == "correct" else key: value for key, value in scores.items()}


def _scored(
    row: dict[str, Any], fields: dict[str, Any], verdicts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The line of scored.jsonl: the sample, what each grader extracted, and its metrics by name; a
    grader's `correct` has its name.
    """
    scores, extracted = {}, {}
    for name, verdict in verdicts.items():
        if "extracted" in verdict:
            extracted[name] = verdict["extracted"]
        scores |= metrics_of(name, verdict)
    gold = fields.get("gold", fields.get("answer"))
    return {key: row[key] for key in row if key != "key"} | {
        "extracted": extracted,
        "gold": gold,
        "scores": scores,
    }


def _estimates(name: str, table: metrics.Scores) -> dict[str, dict[str, Any]]:
    """The mean; with several samples also the paper's rounding, and pass@k of what is right or
    wrong.
    """
    found = {name: metrics.mean(table)._asdict()}
    n = table.shape[1]
    if n > 1:
        found[f"{name}/paper_rounding"] = {
            "value": metrics.paper_rounding(table),
            "se": None,
            "n": len(table),
        }
        if np.isin(table, (0.0, 1.0)).all():
            ks = sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < n} | {n})
            found |= {f"{name}/pass@{k}": metrics.pass_at_k(table, k)._asdict() for k in ks[1:]}
    return found


def _rates(rows: list[dict[str, Any]], verdicts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    def share(flags: list[bool]) -> float:
        return sum(flags) / len(flags)

    return {
        "truncated": share([row["finish_reason"] == "length" for row in rows]),
        "error": share([row["finish_reason"] not in ("stop", "length") for row in rows]),
        "unparsed": {
            name: share([bool(v.get("unparsed")) for v in found])
            for name, found in verdicts.items()
        },
        "timeout": {
            name: share([bool(v.get("timeout")) for v in found]) for name, found in verdicts.items()
        },
    }


def _header(asked: dict[str, Any], task: Task) -> dict[str, Any]:
    """The part of a result that says what was evaluated and how."""
    backend = asked["backend"]
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": asked["fingerprint"][:16],
        "model": {"path": backend["model"], "revision": backend["revision"], "objective": backend["objective"]},
        "task": {
            "name": task.name, "title": task.title, "group": task.group, "columns": task.columns, "version": task.version,
            "data_sha256": asked["data"]["sha256"], "n_items": len(asked["item_ids"]),
        },
        "gen": {
            "backend": backend["backend"], "versions": backend["versions"], "template": backend["template"], "dtype": backend["dtype"],
            "device": backend["device"], "params": asked["params"], "seed": asked["seed"], "n": asked["n"],
        },
        "protocol_notes": deviations(asked, task),
        "started": asked["started"],
        "finished": asked["finished"],
    }  # fmt: skip


def deviations(asked: dict[str, Any], task: Task) -> list[str]:
    """Where this evaluation is not what the task's file describes, and what that file says of the
    published protocol.
    """
    params, decoding, notes = asked["params"], task.decoding, []
    for name, used, published in (
        ("temperature", params.get("temperature"), decoding.temperature),
        ("samples per item", asked["n"], decoding.n if params.get("temperature") else 1),
        ("max_tokens", params.get("max_tokens"), decoding.max_tokens),
    ):
        if used is not None and used != published:
            notes.append(f"{name} {used:g} instead of {published:g}")
    if len(asked["item_ids"]) < task.items:
        notes.append(f"the first {len(asked['item_ids'])} of {task.items} items")
    if not asked["data"]["verified"]:
        notes.append("the data could not be checked against a known hash")
    return [*notes, *task.notes]
