"""Evaluation during training: held-out data, and answers to tasks."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from adaptsft.config.schema import Config
from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.data.collator import Batch
from adaptsft.data.loader import BatchLoader
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import rank0_first
from adaptsft.model.fsdp import ShardedModel, evaluating
from adaptsft.objectives.base import Objective
from adaptsft.objectives.build import NLL
from adaptsft.objectives.state import ObjectiveState
from adaptsft.statistics.step import StepStatistics
from adaptsft.training.metrics import Metrics
from adaptsft.training.setup import Run


class Evaluator:
    """Evaluates the held-out data, if there is any, and the tasks of eval.tasks."""

    def __init__(
        self,
        run: Run,
        model: ShardedModel,
        objective: AdaptiveObjective,
        loader: BatchLoader,
        metrics: Metrics,
        tokenizer: Any,
        tasks: list[Any],
    ):
        self.run, self.model, self.objective, self.loader = run, model, objective, loader
        self.metrics, self.tokenizer, self.tasks = metrics, tokenizer, tasks

    def evaluate(self, step: int) -> dict[str, Any]:
        """Write and return `held_out` and `tasks`, where there are any, after `step` steps."""
        result: dict[str, Any] = {}

        def beat() -> None:
            self.run.watchdog.beat(step)

        held_out = self.loader.data.held_out
        with self.metrics.paused():
            if held_out is not None:
                statistics = StepStatistics(len(held_out.names), self.run.device, self.model.counts)
                batches, function = self.loader.in_order(held_out), self.objective.function
                if "reference" in function.needs:  # which is not measured on held-out data
                    function = NLL
                state = held_out_state(self.objective.state, self.loader.data)
                measure(self.model, function, state, batches, statistics, beat)
                result["held_out"] = self.metrics.evaluation(step, held_out.names, statistics)
            if self.tasks:
                from adaptsft.evals import in_training  # needs the extra `eval`

                found = in_training.evaluate(self.model, self.tokenizer, self.tasks, beat=beat)
                result["tasks"] = self.metrics.tasks(step, found)
        return result


def held_out_state(state: ObjectiveState, data: TrainingData) -> ObjectiveState:
    """The state with which held-out data is scored.

    Examples held out of the training data keep their sources, and these their state. A validation
    file belongs to none of several sources: it is a source of its own, whose state is the mean over
    the training sources, weighted by their target tokens in an epoch.
    """
    if data.held_out is None or len(data.held_out.names) == len(data.names):
        return state
    tokens = torch.from_numpy(data.train.target_tokens_per_epoch()).to(state.alpha.device)
    share = tokens / tokens.sum()
    return ObjectiveState(*((share * field).sum(0, keepdim=True).float() for field in state))


@torch.no_grad()
def measure(
    model: ShardedModel,
    function: Objective,
    state: ObjectiveState,
    batches: Iterable[Batch],
    statistics: StepStatistics,
    beat: Callable[[], None],
) -> None:
    """Add all `batches` of this rank to `statistics`, and sum these over ranks."""
    with evaluating(model):
        for batch in batches:
            beat()
            _, tokens, kept = model.token_loss(batch, function, state, 1.0)
            statistics.add(tokens, kept, batch)
    statistics.all_reduce()


def prepare_tasks(config: Config, tokenizer: Any) -> list[Any]:
    """The tasks of eval.tasks, ready to be answered. Raises UserError on all ranks."""
    settings = config.eval
    if not settings.tasks:
        return []
    from adaptsft.evals import in_training  # needs the extra `eval`

    return rank0_first(lambda: in_training.prepare(settings, tokenizer, config.data, config.seed))
