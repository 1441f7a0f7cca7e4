"""Which runs differ by more than noise: paired bootstrap on the items that they share."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptsft.errors import DataError
from adaptsft.evals import samples
from adaptsft.evals.metrics import Difference, Scores, paired_bootstrap, pass_at_k
from adaptsft.evals.origin import score_command


def read_scored(folder: Path) -> list[dict[str, Any]]:
    return samples.read_lines(folder / "scored.jsonl", score_command(folder))[0]


def item_scores(records: Iterable[dict[str, Any]], metric: str) -> dict[str, float]:
    """Item id -> mean over its samples, or for NAME/pass@k that chance."""
    name, _, k = metric.partition("/pass@")
    values: dict[str, list[float]] = {}
    for record in records:
        score = record["scores"].get(name)
        values.setdefault(record["item_id"], []).append(math.nan if score is None else float(score))
    if k:
        complete = {item: scores for item, scores in values.items() if not np.isnan(scores).any()}
        return {item: pass_at_k(np.array([s]), int(k)).value for item, s in complete.items()}
    means = {item: [s for s in scores if not math.isnan(s)] for item, scores in values.items()}
    return {item: float(np.mean(scores)) for item, scores in means.items() if scores}


def require_same_data(a: Path, b: Path) -> None:
    data = [samples.read_json(folder / "run.json")["data"]["sha256"] for folder in (a, b)]
    if data[0] != data[1]:
        raise DataError(
            f"{a} and {b}: evaluated on other data (sha256 {data[0][:12]}… and {data[1][:12]}…): "
            "they cannot be compared"
        )


def difference(a: dict[str, float], b: dict[str, float]) -> Difference | None:
    """b against a, scores by item; None where they share no item."""
    shared = [item for item in a if item in b]
    return paired_bootstrap(_column(a, shared), _column(b, shared)) if shared else None


def _column(scores: dict[str, float], items: list[str]) -> Scores:
    return np.array([[scores[item]] for item in items])


class Best(NamedTuple):
    index: int
    same: list[bool]  # of each entry, whether it is not distinguishable from the best
    items: int  # that all entries have, on which they are compared


def against_best(entries: list[tuple[Path, str]]) -> Best:
    """Which of some (folder, metric) entries is best on the items that all have, and which are not
    distinguishable from it.

    The best has the highest mean; another is not distinguishable where the 95 % interval of the
    difference holds 0. Raises DataError where their data is not the same, or they share no item.
    """
    for folder, _ in entries[1:]:
        require_same_data(entries[0][0], folder)
    scores = [item_scores(read_scored(folder), metric) for folder, metric in entries]
    shared = [item for item in scores[0] if all(item in one for one in scores)]
    if not shared:
        raise DataError(
            f"no item has a {entries[0][1]} in all of {', '.join(str(run) for run, _ in entries)}: "
            "give all the same --limit"
        )
    columns = [_column(one, shared) for one in scores]
    best = int(np.argmax([column.mean() for column in columns]))
    same = []
    for i, column in enumerate(columns):
        found = None if i == best else paired_bootstrap(columns[best], column)
        same.append(found is None or found.low <= 0.0 <= found.high)
    return Best(best, same, len(shared))
