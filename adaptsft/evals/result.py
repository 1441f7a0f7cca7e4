"""What result.json holds beside the grades themselves. Its schema is result.schema.json."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from adaptsft.evals import metrics
from adaptsft.evals.tasks import Task

SCHEMA_VERSION = 1
_NOT_A_METRIC = ("unparsed", "timeout", "extracted", "error")  # of a verdict


def header(asked: dict[str, Any], task: Task) -> dict[str, Any]:
    """What was evaluated and how. `asked` is the content of run.json."""
    backend = asked["backend"]
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": asked["fingerprint"][:16],
        "model": {
            "path": backend["model"],
            "revision": backend["revision"],
            "objective": backend["objective"],
        },
        "task": {
            "name": task.name,
            "title": task.title,
            "group": task.group,
            "columns": task.columns,
            "version": task.version,
            "grading": task.grading,
            "data_sha256": asked["data"]["sha256"],
            "n_items": len(asked["item_ids"]),
        },
        "gen": {
            "backend": backend["backend"],
            "versions": backend["versions"],
            "template": backend["template"],
            "dtype": backend["dtype"],
            "device": backend["device"],
            "params": asked["params"],
            "seed": asked["seed"],
            "n": asked["n"],
        },
        "protocol_notes": _deviations(asked, task),
        "started": asked["started"],
        "finished": asked["finished"],
    }


def _deviations(asked: dict[str, Any], task: Task) -> list[str]:
    """Where this evaluation differs from the task's file, and that file's notes on the protocol."""
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


def metrics_of(grader: str, verdict: dict[str, Any]) -> dict[str, Any]:
    """The booleans and numbers of a verdict, None where it has no score.

    `correct` becomes the grader's name.
    """
    scores = {
        key: value
        for key, value in verdict.items()
        if key not in _NOT_A_METRIC and isinstance(value, bool | int | float | None)
    }
    return {grader if key == "correct" else key: value for key, value in scores.items()}


def scored(
    sample: dict[str, Any], fields: dict[str, Any], verdicts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """A record of scored.jsonl: the sample, what each grader extracted, its metrics by name, and
    what it remarked (`unparsed`, `timeout`, an error), where it did."""
    scores, extracted, remarks = {}, {}, {}
    for name, verdict in verdicts.items():
        remarked = [key for key in ("unparsed", "timeout") if verdict.get(key)]
        if remarked or verdict.get("error"):
            remarks[name] = ", ".join([*remarked, *filter(None, [verdict.get("error")])])
        if "extracted" in verdict:
            extracted[name] = verdict["extracted"]
        scores |= metrics_of(name, verdict)
    gold = fields.get("gold", fields.get("answer"))
    kept = {key: sample[key] for key in sample if key != "key"}
    told = {"remarks": remarks} if remarks else {}
    return kept | {"extracted": extracted, "gold": gold, "scores": scores} | told


def estimates(name: str, table: metrics.Scores) -> dict[str, dict[str, Any]]:
    """The mean of a metric.

    With several samples also the paper's rounding, and where scores are right or wrong pass@k, for
    the powers of two up to the number of samples and that number. An item of which a sample has no
    score counts in none of these.
    """
    found: dict[str, dict[str, Any]] = {name: metrics.mean(table)._asdict()}
    n = table.shape[1]
    if n == 1:
        return found
    rounded = metrics.paper_rounding(table)
    found[f"{name}/paper_rounding"] = {"value": rounded, "se": None, "n": len(table)}
    complete = table[~np.isnan(table).any(1)]
    if len(complete) and np.isin(complete, (0.0, 1.0)).all():
        for k in sorted({1 << power for power in range(1, n.bit_length())} | {n}):
            found[f"{name}/pass@{k}"] = metrics.pass_at_k(complete, k)._asdict()
    return found


def entropy(sampled: list[dict[str, Any]], items: int) -> dict[str, Any] | None:
    """Mean entropy of the next-token distributions from which the answers were drawn, in nats.

    `sampled` holds all samples, item by item. None where a backend did not record it (vllm, http,
    replay), where the temperature was not 1, and for samples of an older version.
    """
    drawn = [sample.get("drawn") for sample in sampled]
    if any(count is None for count in drawn) or not any(drawn):
        return None
    means = [math.nan if sample["entropy"] is None else sample["entropy"] for sample in sampled]
    table, tokens = (np.array(values, float).reshape(items, -1) for values in (means, drawn))
    found = metrics.per_token(table, tokens)._asdict()
    return found | {"tokens": int(tokens.sum())} if math.isfinite(found["value"]) else None


def finite(estimate: dict[str, Any]) -> dict[str, Any]:
    """An estimate with null in place of NaN, which JSON does not have."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in estimate.items()
    }


def rates(
    sampled: list[dict[str, Any]], verdicts: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Shares of the samples that ended early, and of the verdicts that are none."""
    reasons = [sample["finish_reason"] for sample in sampled]
    ended = [
        reason not in ("stop", "length") or bool(sample.get("error"))
        for reason, sample in zip(reasons, sampled, strict=True)
    ]
    counts = Counter("null" if reason is None else reason for reason in reasons)
    return {
        "truncated": _share([reason == "length" for reason in reasons]),
        "error": _share(ended),
        "finish_reasons": {reason: n / len(reasons) for reason, n in counts.most_common()},
        "unparsed": shares("unparsed", verdicts),
        "timeout": shares("timeout", verdicts),
        "ungraded": ungraded(verdicts),
    }


def ungraded(verdicts: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Of each grader, the share of verdicts without a score."""
    return {
        name: _share([is_ungraded(name, verdict) for verdict in found])
        for name, found in verdicts.items()
    }


def is_ungraded(grader: str, verdict: dict[str, Any]) -> bool:
    """Whether there is no score in it: the record could not be graded, or the judge chose none."""
    return all(score is None for score in metrics_of(grader, verdict).values())


def right_or_wrong(records: Iterable[dict[str, Any]]) -> list[str]:
    """The metrics, of records of scored.jsonl, that say right or wrong (or nothing): those whose
    verdicts can be held against each other."""
    said: dict[str, set[type]] = {}
    for record in records:
        for name, score in record["scores"].items():
            said.setdefault(name, set()).add(type(score))
    return [name for name, types in said.items() if bool in types <= {bool, type(None)}]


def differ(record: dict[str, Any], graders: list[str]) -> bool:
    """Whether one says right and another wrong. No score is neither."""
    scores = {record["scores"].get(name) for name in graders}
    return len(scores - {None}) > 1


def shares(key: str, verdicts: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    return {
        name: _share([bool(verdict.get(key)) for verdict in found])
        for name, found in verdicts.items()
    }


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)
