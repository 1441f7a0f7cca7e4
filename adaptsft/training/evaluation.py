"""Evaluation during training: held-out data, and answers to tasks."""

from pathlib import Path
from typing import Any

import torch

from adaptsft.config.schema import Config
from adaptsft.controllers.runtime import AdaptiveObjective
from adaptsft.data.cache import TokenizedData
from adaptsft.data.loader import BatchLoader
from adaptsft.distributed.ranks import rank0_first
from adaptsft.distributed.signals import Watchdog
from adaptsft.model.build import ShardedModel, reshard
from adaptsft.statistics.step import StepStatistics
from adaptsft.training.metrics import Metrics


class Evaluator:
    """Evaluates the held-out data, if there is any, and the tasks of eval.tasks."""

    def __init__(self, config: Config, tokenizer: Any, held_out: TokenizedData | None):
        self.tokenizer, self.held_out = tokenizer, held_out
        self.tasks = rank0_first(lambda: _prepare_tasks(config, tokenizer))

    def evaluate(
        self,
        step: int,
        model: ShardedModel,
        objective: AdaptiveObjective,
        loader: BatchLoader,
        metrics: Metrics,
        watchdog: Watchdog,
    ) -> dict[str, Any]:
        """Write and return the figures after `step` steps: `held_out` and `tasks`, where there are any."""
        result: dict[str, Any] = {}
        with metrics.paused():
            if self.held_out is not None:
                batches = loader.in_order(self.held_out)
                statistics = StepStatistics(len(self.held_out.names), objective.state.alpha.device)
                measure(model, objective, batches, statistics, lambda: watchdog.beat(step))
                result["held_out"] = metrics.evaluation(step, self.held_out.names, statistics)
            if self.tasks:
                from adaptsft.evals import in_training  # needs the extra `eval`

                found = in_training.evaluate(
                    model, self.tokenizer, self.tasks, beat=lambda: watchdog.beat(step)
                )
                result["tasks"] = metrics.tasks(step, found)
        return result


@torch.no_grad()
def measure(model, objective, batches, statistics, beat) -> None:
    """Fill `statistics` from all `batches` of this rank, and sum them over ranks."""
    model.eval()
    for batch in batches:
        beat()
        _, tokens, kept = model.token_loss(batch, objective.function, objective.state, 1.0)
        statistics.add(tokens, kept, batch)
    reshard(model)
    model.train()
    statistics.all_reduce()


def _prepare_tasks(config: Config, tokenizer: Any) -> list[Any]:
    """The tasks of eval.tasks, ready to be answered."""
    settings = config.eval
    if not settings.tasks:
        return []
    from adaptsft.evals import in_training  # needs the extra `eval`

    folder = Path(settings.data_dir) if settings.data_dir else None
    return in_training.prepare(
        settings.tasks, folder, settings.limit, settings.max_tokens, tokenizer, config.data
    )
