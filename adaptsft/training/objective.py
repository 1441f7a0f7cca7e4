"""The objective of a run, from its configuration, model and data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from adaptsft.config.schema import Config
from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.data.stop import turn_end
from adaptsft.data.template import Template
from adaptsft.data.tokenized import TokenizedData
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import raise_on_all_ranks
from adaptsft.model.pretrained import Pretrained
from adaptsft.objectives.base import Objective
from adaptsft.objectives.build import exempt_ids
from adaptsft.statistics.base_model import BaseStatistics, BaseTokens


def configured_objective(
    config: Config,
    pretrained: Pretrained,
    data: TrainingData,
    optimizer: torch.optim.Optimizer,
    base: BaseStatistics | None,
) -> AdaptiveObjective:
    """That of the run's first step, which scales the optimizer's learning rate where its controller
    does. Raises ConfigError on all ranks."""
    tokenizer = pretrained.tokenizer
    ends = turn_end(Template(tokenizer, config.data)).stop_ids(tokenizer.eos_token_id)
    return AdaptiveObjective(
        config.objective,
        controller=config.controller,
        total_steps=data.steps,
        optimizer=optimizer,
        sources=data.names,
        exempt=exempt_ids(config.objective, tokenizer, ends),
        measured=None if base is None else base.per_source(),
    )


def base_statistics(
    config: Config, pretrained: Pretrained, data: TokenizedData, device: torch.device
) -> BaseStatistics | None:
    """What controller.base_stats names, if it is set. Raises ConfigError on all ranks."""
    return raise_on_all_ranks(
        lambda: BaseStatistics.configured(
            config.controller, model=pretrained.folder, data=data, device=device
        )
    )


def base_tokens(
    function: Objective, config: Config, pretrained: Pretrained, data: TokenizedData
) -> Callable[[int], np.ndarray] | None:
    """What maps an example to what the base model makes of its target tokens, where the objective
    needs it. Raises ConfigError on all ranks."""
    if "reference" not in function.needs:
        return None
    path = Path(config.objective.base_tokens)
    return raise_on_all_ranks(lambda: BaseTokens.open(path, model=pretrained.folder, data=data)).of
