"""Runs of the lab in fast mode: which of them can be trained together, and their results."""

import functools
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from benchmarks.lab import families
from benchmarks.lab.regimes import find
from benchmarks.lab.runs import (
    UNTOUCHED,
    Run,
    data_of,
    execute,
    result_of,
    trajectories,
    write_result,
)
from benchmarks.lab.stacked.examples import Examples
from benchmarks.lab.stacked.model import StackedLlama, config_of
from benchmarks.lab.stacked.training import StackedRun, train_stacked
from benchmarks.lab.training import configure

STACK = 8  # runs of a stack: enough for the matrix products, few enough for the caches


def stacks(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups that can be trained together: of one family, as many steps, and the same
    `train` keys. What does not train stands alone."""
    groups: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        alone = run.name if run.method == UNTOUCHED else ""
        groups[run.family, repr(sorted(run.trainer_keys["train"].items())), alone].append(run)
    return [of[i : i + STACK] for of in groups.values() for i in range(0, len(of), STACK)]


def execute_stack(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Train and score all runs of a stack; as runs.execute. Raises UserError."""
    if runs[0].method == UNTOUCHED:
        return [execute(run) for run in runs]
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    began, cpu = time.perf_counter(), time.process_time()
    pretrained = {run.pretrained for run in runs}
    models = {path: AutoModelForCausalLM.from_pretrained(path).eval() for path in pretrained}
    tokenizer = AutoTokenizer.from_pretrained(runs[0].pretrained)
    start = {path: dict(model.state_dict()) for path, model in models.items()}
    start = {path: {k: w.clone() for k, w in weights.items()} for path, weights in start.items()}
    asked = [_stacked(run, start[run.pretrained], tokenizer) for run in runs]
    longest = max(run.examples.ids.shape[1] for run in asked)
    model = models[runs[0].pretrained]
    trained = train_stacked(StackedLlama(config_of(model.config), longest), asked)
    results = []
    for run, (weights, lines) in zip(runs, trained, strict=True):
        model.load_state_dict(weights)
        results.append(result_of(run, model, tokenizer, trajectories(lines)))
    shares = {
        "seconds": round((time.perf_counter() - began) / len(runs), 2),
        "cpu_seconds": round((time.process_time() - cpu) / len(runs), 2),
    }
    for run, result in zip(runs, results, strict=True):
        result |= shares
        write_result(run.result, result)
    return results


def _stacked(run: Run, weights: dict[str, torch.Tensor], tokenizer: Any) -> StackedRun:
    regime, _ = find(run.regime)
    sources = data_of(run, families.find(run.family), regime)
    cache = run.folder / "cache"
    config = configure(run.run_dir, run.pretrained, run.seed, sources, cache, run.trainer_keys)
    Path(f"{run.run_dir}.yaml").unlink()
    return StackedRun(config, _examples(tuple(sources.items()), tokenizer), weights, tokenizer)


@functools.lru_cache(maxsize=16)  # the methods of a stack share their data
def _examples(sources: tuple[tuple[str, Path], ...], tokenizer: Any) -> Examples:
    return Examples.read(dict(sources), tokenizer)
