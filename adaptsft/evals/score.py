"""Second stage: recorded answers -> verdicts of every grader of the task, and result.json."""

import argparse
import hashlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from adaptsft.errors import DataError, UserError
from adaptsft.evals import metrics, origin, result, samples
from adaptsft.evals.alpaca.annotations import Annotations, read_annotations
from adaptsft.evals.alpaca.outputs import read_json_list
from adaptsft.evals.alpaca.winrate import evaluate as evaluate_win_rate
from adaptsft.evals.code.answers import grade_answers
from adaptsft.evals.graders.grading import grade_all
from adaptsft.evals.samples import Samples
from adaptsft.evals.tasks import Task, from_dict


@dataclass(frozen=True)
class Grading:
    """What graders are given beside the answers."""

    workers: int = 0  # processes; 0: all cores
    data_dir: Path | None = None  # for the code grader, whose tests stay in the data files
    allow_code_exec: bool = False


def run_command(options: argparse.Namespace) -> int:
    """`python -m adaptsft.evals score`."""
    folders = samples.folders(options.out)
    if not folders:
        raise DataError(f"{options.out}: no run.json below it: run generate first")
    return score_folders(folders, options)


def score_folders(folders: list[Path], options: argparse.Namespace) -> int:
    """Score them one by one, and show their figures. An error in one does not stop the others."""
    grading = Grading(options.workers, options.data_dir, options.allow_code_exec)
    errors = []
    for folder in folders:
        try:
            found = score(folder, grading)
        except UserError as error:
            errors.append(error)
            continue
        print(f"{folder}: {_line(found)}  ({found['task']['n_items']} items)")
    for error in errors[1:]:
        print(f"adaptsft.evals: {type(error).__name__}: {error}", file=sys.stderr)
    if errors:
        raise errors[0]
    return 0


def _line(found: dict[str, Any]) -> str:
    """The figures of a result, with the share of answers in which a grader found none: of pass@k
    those with the most samples."""
    most = f"/pass@{found['gen']['n']}"
    unparsed = found["rates"]["unparsed"]
    shown = [
        f"{name} {100 * value['value']:.2f}"
        + (f" ({100 * unparsed[name]:.2f} % unparsed)" if unparsed.get(name) else "")
        for name, value in found["metrics"].items()
        if "/" not in name or name.endswith(most)
    ]
    if found["entropy"] is not None:
        shown.append(f"entropy {found['entropy']['value']:.3f} nats per token")
    rates = found["rates"]
    if rates["error"]:
        odd = [
            f"{reason} {100 * share:.1f} %"
            for reason, share in rates.get("finish_reasons", {}).items()
            if reason not in ("stop", "length")
        ]
        shown.append(f"[answers with errors: {100 * rates['error']:.1f} %{_listed(odd)}]")
    if rates["truncated"]:
        shown.append(f"[cut off at max_tokens: {100 * rates['truncated']:.1f} %]")
    left_out = [
        f"{name} {100 * share:.1f} %" for name, share in rates.get("ungraded", {}).items() if share
    ]
    if left_out:
        shown.append(f"[without a score, left out of the means: {', '.join(left_out)}]")
    return "  ".join(shown)


def _listed(parts: list[str]) -> str:
    return f"; {', '.join(parts)}" if parts else ""


def score(folder: Path, grading: Grading) -> dict[str, Any]:
    """Grade a task-and-mode folder; returns what it writes to result.json.

    Nothing is generated. Raises DataError where answers are missing.
    """
    asked = samples.read_json(folder / "run.json")
    task = from_dict(asked["task"], str(folder / "run.json"))
    if task.runner == "harness":
        return _by_harness(folder, asked, task, grading)
    items = {item["id"]: item["fields"] for item in samples.read_lines(folder / "items.jsonl")[0]}
    sampled = _samples(folder, asked)
    records = [
        task.grading
        | items[sample["item_id"]]
        | {"response": sample["output"], "output": sample["output"]}
        for sample in sampled
    ]
    verdicts = {name: grade(name, records, task, grading, folder) for name in task.graders}
    for name, graded in verdicts.items():
        if all(result.is_ungraded(name, verdict) for verdict in graded):
            reason = graded[0].get("error") or "no reason given"
            raise DataError(f"{folder}: {name} could grade none of its answers: {reason}")
    scored = [
        result.scored(
            sample, items[sample["item_id"]], {name: verdicts[name][i] for name in verdicts}
        )
        for i, sample in enumerate(sampled)
    ]
    shape = len(asked["item_ids"]), asked["n"]
    tables = {
        name: np.array([record["scores"][name] for record in scored], dtype=float).reshape(shape)
        for name in scored[0]["scores"]
    }
    graders = result.right_or_wrong(scored)
    disagreements = [record for record in scored if result.differ(record, graders)]
    samples.write_lines(folder / "scored.jsonl", scored)
    samples.write_lines(folder / "disagreements.jsonl", disagreements)
    found: dict[str, Any] = {}
    for name, table in tables.items():
        found |= result.estimates(name, table)
    if "judge" in task.graders:
        found |= _length_controlled(folder, grading)
    written = result.header(asked, task) | {
        "made_from": origin.digest_of(folder, asked),
        "grader": [
            {"name": name, "version": _grader_version(name)}
            | (_judged_by(folder) if name == "judge" else {})
            for name in task.graders
        ],
        "metrics": found,
        "entropy": result.entropy(sampled, shape[0]),
        "per_sample_index_acc": {name: metrics.by_sample(table) for name, table in tables.items()},
        "rates": result.rates(sampled, verdicts),
        "disagreements": len(disagreements),
        "disagreements_path": "disagreements.jsonl",
        "samples_path": "scored.jsonl",
    }
    samples.write_json(folder / "result.json", written)
    return written


def _samples(folder: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples that run.json names, item by item. Raises DataError where some are missing."""
    have = Samples(folder, -1).records.values()
    answers = {(sample["item_id"], sample["sample"]): sample for sample in have}
    wanted = [(item_id, sample) for item_id in asked["item_ids"] for sample in range(asked["n"])]
    missing = [pair for pair in wanted if pair not in answers]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(wanted)} answers are missing, item {missing[0][0]} "
            "first: run generate again"
        )
    return [answers[pair] for pair in wanted]


def _by_harness(
    folder: Path, asked: dict[str, Any], task: Task, grading: Grading
) -> dict[str, Any]:
    """lm-eval grades what it finds in the folder; it needs the data again."""
    from adaptsft.evals.harness.evaluate import evaluate  # lm-eval is optional, and slow to import

    data = asked["data"]
    found = evaluate(
        task.harness_task,
        None,
        folder,
        data_dir=grading.data_dir or (data["dir"] and Path(data["dir"])),
        items=task.items,
        limit=data["limit"],
        seed=asked["seed"],
    )
    verdicts, own = _beside_harness(found.records, task, grading, folder)
    graders = result.right_or_wrong(found.records)
    disagreements = [record for record in found.records if result.differ(record, graders)]
    samples.write_lines(folder / "scored.jsonl", found.records)
    if task.graders:
        samples.write_lines(folder / "disagreements.jsonl", disagreements)
    asked |= {
        "data": data | {"sha256": found.data_sha256, "verified": False},
        "item_ids": [record["item_id"] for record in found.records],
    }
    samples.write_json(folder / "run.json", asked)
    written = result.header(asked, task) | {
        "made_from": origin.digest_of(folder, asked),
        "grader": [
            {"name": "lm-eval", "version": found.settings["lm_eval"]},
            *({"name": name, "version": _grader_version(name)} for name in task.graders),
        ],
        "metrics": {name: result.finite(estimate) for name, estimate in found.metrics.items()}
        | own,
        "entropy": None,
        "per_sample_index_acc": {},
        "rates": {
            "truncated": None,
            "error": found.rates.get("error"),
            "unparsed": {"lm-eval": found.rates.get("unparsed", 0.0)}
            | result.shares("unparsed", verdicts),
            "timeout": {},
            "ungraded": result.ungraded(verdicts),
        },
        "disagreements": len(disagreements),
        "disagreements_path": "disagreements.jsonl" if task.graders else None,
        "samples_path": "scored.jsonl",
    }
    written["task"]["n_items"] = found.n_items
    if found.temperature is not None:  # answers were generated; without it tables say likelihood
        written["gen"]["params"] = {"temperature": found.temperature}
    samples.write_json(folder / "result.json", written)
    return written


def _beside_harness(
    records: list[dict[str, Any]], task: Task, grading: Grading, folder: Path
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, Any]]]:
    """The verdicts of the task's graders on what lm-eval has graded, and their metrics.

    Adds to each record what they extracted and its scores, and takes its `fields` away. Beside
    them lm-eval's 1.0 and 0.0 become right and wrong.
    """
    fields = [record.pop("fields", {}) for record in records]
    answers = [
        of | {"response": record["output"]} for of, record in zip(fields, records, strict=True)
    ]
    verdicts = {name: grade(name, answers, task, grading, folder) for name in task.graders}
    for i, record in enumerate(records if task.graders else []):
        record["extracted"] = {"lm-eval": record["extracted"]}
        for name, score in record["scores"].items():
            record["scores"][name] = bool(score) if score in (0.0, 1.0) else score
        for name in task.graders:
            record["extracted"][name] = verdicts[name][i]["extracted"]
            record["scores"] |= result.metrics_of(name, verdicts[name][i])
    found: dict[str, dict[str, Any]] = {}
    for name in task.graders:
        table = np.array([[record["scores"][name]] for record in records], float)
        found |= result.estimates(name, table)
    return verdicts, found


def grade(
    name: str, records: list[dict[str, Any]], task: Task, grading: Grading, folder: Path
) -> list[dict[str, Any]]:
    """The verdicts of one grader, in order.

    Raises ConfigError where an option that it needs is missing.
    """
    if name == "judge":
        return _judgements(folder, records)
    bar = tqdm(total=len(records), desc=f"{task.name} {name}", unit="answer", mininterval=1.0)
    with bar:
        if name == "code":
            return grade_answers(
                records,
                task,
                data_dir=grading.data_dir,
                allow_code_exec=grading.allow_code_exec,
                workers=grading.workers,
                progress=bar.update,
            )
        return grade_all(name, records, workers=grading.workers, progress=bar.update)


def _judgements(folder: Path, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    path, preferences = folder / "annotations.json", _annotations(folder).preference
    again = f"judge again: `{_how_to_judge(folder)}`"
    if len(preferences) != len(answers):
        raise DataError(f"{path}: {len(preferences)} judgements of {len(answers)} answers: {again}")
    judged = read_json_list(path, ("instruction", "output_2"))
    for number, (one, answer) in enumerate(zip(judged, answers, strict=True)):
        for theirs, ours in (("instruction", "instruction"), ("output_2", "output")):
            if one[theirs] != answer.get(ours):
                raise DataError(
                    f"{path}, item {number}: {theirs} is {one[theirs]!r:.60}, the {ours} here "
                    f"{answer.get(ours)!r:.60}: these are judgements of other answers; {again}"
                )
    if np.isnan(preferences).all():
        raise DataError(
            f"{path}: the judge chose in none of {len(answers)} pairs: it must answer with m or M"
        )
    return [{"win_rate": None if math.isnan(p) else float(p)} for p in preferences]


def _how_to_judge(folder: Path) -> str:
    return f"python -m adaptsft.evals judge {folder} REFERENCE --out {folder} --judge …"


def _judged_by(folder: Path) -> dict[str, str]:
    found = _annotations(folder)
    return {"judge": found.judge, "reference": found.reference}


def _annotations(folder: Path) -> Annotations:
    """The judgements of a folder. Raises DataError, with the command that makes them."""
    if not (folder / "annotations.json").is_file():
        raise DataError(
            f"{folder}: its answers have not been judged: `{_how_to_judge(folder)}`, then score "
            "(docs/alpaca_eval.md)"
        )
    return read_annotations(folder / "annotations.json")[0]


def _length_controlled(folder: Path, grading: Grading) -> dict[str, dict[str, Any]]:
    """The length-controlled win rate, where --data-dir holds the file that it is fitted with."""
    gamed = grading.data_dir and grading.data_dir / "alpaca" / "df_gamed.csv"
    if gamed is None or not gamed.is_file():
        return {}
    found = evaluate_win_rate(_annotations(folder), df_gamed=gamed)
    rate, error = found["lc_win_rate"] / 100, found["lc_standard_error"] / 100
    return {"lc_win_rate": {"value": rate, "se": error, "n": found["n_total"]}}


def _grader_version(name: str) -> str:
    """A hash of the graders' source: results with the same one were graded by the same rules."""
    folder = Path(__file__).parent / ("code" if name == "code" else "graders")
    sources = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:16]
