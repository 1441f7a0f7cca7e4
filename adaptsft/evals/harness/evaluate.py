"""Running one task of lm-eval, and reading its results."""

import math
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from adaptsft.errors import DataError
from adaptsft.evals.harness.library import lm_eval
from adaptsft.evals.harness.model import Model, sampling_of
from adaptsft.evals.harness.tasks import TASKS, load
from adaptsft.evals.protocol import Backend
from adaptsft.evals.samples import digest


@dataclass(frozen=True)
class Evaluation:
    metrics: dict[str, dict[str, float]]  # {name: {value, se, n}}, fractions
    # item_id, prompt, output, extracted, gold, scores of each item, and `fields`: what our graders
    # read of it, where the task has any
    records: list[dict[str, Any]]
    # of generated answers: `unparsed`, in which nothing was found; `error`, that were not given
    rates: dict[str, float]
    n_items: int
    data_sha256: str  # of all items, whatever the limit
    temperature: float | None  # of generated answers; None where likelihoods are compared
    settings: dict[str, Any]  # lm-eval's version, versions of the tasks, numbers of examples


def evaluate(
    name: str,
    backend: Backend | None,
    folder: Path,
    *,
    data_dir: Path | None = None,
    items: int | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    seed: int = 42,
    retry_errors: bool = False,
) -> Evaluation:
    """Run a task of TASKS, or of an lm-eval YAML file. All ranks call it, and all get the result.

    Answers are appended to `folder` as they come; those that are there are not asked for again.
    Without a backend all must be there: that is how recorded answers are scored anew. `items`: how
    many the data must have. `limit`: the first ones only, of each subject where the task has
    subjects. `num_fewshot` overrides the pinned number; `retry_errors` asks again for answers that
    were recorded with an error. Raises ConfigError for an unknown task,
    DataError for data that is missing or not what was named.
    """
    loaded = load(name, data_dir, num_fewshot)
    leaves = loaded["tasks"]
    found = sum(len(task.eval_docs) for task in leaves.values())
    if items is not None and found != items:
        raise DataError(
            f"{name}: the data has {found} items, the task names {items}: is it another version of "
            "the data?"
        )
    model = Model(name, backend, folder, seed, retry_errors)
    results = lm_eval.evaluate(model, loaded, limit=limit, bootstrap_iters=1000)
    assert results is not None  # lm-eval gives None on ranks but its first; it sees one (Model)
    read = TASKS[name].fields if name in TASKS else None
    records = [
        _record(leaf, sample) | ({"fields": read(sample["doc"])} if read else {})
        for leaf in leaves
        for sample in results["samples"][leaf]
    ]
    if name in results.get("groups", {}):
        summary = results["groups"][name]
    else:
        summary = results["results"][next(iter(leaves))]
    n = sum(results["n-samples"][leaf]["effective"] for leaf in leaves)
    decoding = next(iter(leaves.values())).get_config("generation_kwargs") or {}
    unparsed = [record["extracted"] == ["[invalid]"] for record in records if record["generated"]]
    return Evaluation(
        metrics=_metrics(summary, n),
        records=records,
        rates={
            "unparsed": sum(unparsed) / len(unparsed),
            "error": model.failed / len(unparsed),
        }
        if unparsed
        else {},
        n_items=n,
        data_sha256=digest(
            [[leaf, [dict(item) for item in leaves[leaf].eval_docs]] for leaf in sorted(leaves)]
        ),
        temperature=sampling_of(decoding).temperature if unparsed else None,
        settings={
            "lm_eval": lm_eval.__version__,
            "versions": {leaf: results["versions"].get(leaf) for leaf in leaves},
            "num_fewshot": {leaf: results["n-shot"].get(leaf) for leaf in leaves},
        },
    )


def _metrics(summary: dict[str, Any], n: int) -> dict[str, dict[str, float]]:
    """lm-eval's "acc,none" and "acc_stderr,none" -> acc: {value, se, n}."""
    metrics = {}
    for key, value in summary.items():
        metric, _, filter_ = key.partition(",")
        if filter_ and not metric.endswith("_stderr"):
            error = summary.get(f"{metric}_stderr,{filter_}")
            se = float(error) if isinstance(error, int | float) else math.nan
            metrics[metric] = {"value": float(value), "se": se, "n": n}
    return metrics


def _record(leaf: str, sample: dict[str, Any]) -> dict[str, Any]:
    answers = [answer[0] for answer in sample["resps"]]
    generated = isinstance(answers[0], str)
    return {
        "item_id": f"{leaf}/{sample['doc_id']}",
        "prompt": sample["arguments"][0][0],
        "generated": generated,
        "output": answers[0] if generated else answers,
        "extracted": sample["filtered_resps"],
        "gold": sample["target"],
        "scores": {
            metric: float(sample[metric])
            for metric in sample["metrics"]
            if isinstance(sample[metric], Real)
        },
    }
