"""What a configuration must be, beyond its types: every refusal names key, value and fix. Nothing is loaded."""

import difflib
import math
import re

from adaptsft.config.load import parse_arguments
from adaptsft.config.schema import Config, all_keys, get
from adaptsft.controllers.validate import acts_through, validate_controller
from adaptsft.errors import ConfigError, require
from adaptsft.objectives.build import build_objective


def load_config(arguments: list[str]) -> Config:
    """The configuration from `[CONFIG.yaml] key=value …` (later wins). Raises ConfigError; loads no model and no data."""
    config = parse_arguments(arguments)
    resolve_and_validate(config)
    return config


def resolve_and_validate(config: Config) -> None:
    """Refuse what cannot work. Raises ConfigError.

    objective.name=auto becomes the objective that it means, so that the configuration saved with the run says it.
    """
    if config.objective.name == "auto":
        config.objective.name = acts_through(config.controller)
    _choices(config)
    require(
        config.run_dir != "",
        "run_dir is not set: add run_dir=runs/NAME, the folder that receives checkpoints and the final model",
    )
    require(
        config.model.path != "",
        "model.path is not set: add model.path=NAME_OR_FOLDER of a Hugging Face causal language model",
    )
    _data(config)
    if config.data.stream > 0:
        _stream(config)
    _numbers(config)
    _train(config)
    _objective(config)
    _loss_reduction(config)


def _choices(config: Config) -> None:
    for name, declared, _ in all_keys():
        choices, value = declared.metadata["choices"], get(config, name)
        require(
            not isinstance(value, float) or math.isfinite(value),
            f"{name}={value}: must be a finite number",
        )
        if choices and value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            raise ConfigError(
                f"{name}={value}: must be one of {', '.join(choices)}"
                + (f"; did you mean {near[0]}?" if near else "")
            )


def _data(config: Config) -> None:
    data = config.data
    require(
        data.path != "" or data.sources != [],
        "no training data: set data.path=FILE_OR_NAME or data.sources",
    )
    require(
        data.path == "" or data.sources == [],
        "data.path and data.sources are both set: for several sources use data.sources alone (data.path= unsets the other)",
    )
    alone = data.fields == {} and data.subset is None and data.split == "train"
    require(
        alone or data.path != "",
        "data.fields, data.subset and data.split belong to data.path; with data.sources, give them in each source",
    )
    for number, source in enumerate(data.sources):
        require(source.path != "", f"data.sources[{number}].path is not set")
        require(
            source.weight > 0, f"data.sources[{number}].weight={source.weight}: must be above 0"
        )
    require(
        data.validation_path == "" or data.validation_examples == 0,
        "set either data.validation_path or data.validation_examples, not both",
    )
    held_out = data.validation_path != "" or data.validation_examples > 0
    require(
        config.eval.every == 0 or held_out or config.eval.tasks != [],
        "eval.every is set but nothing is evaluated: set data.validation_path, data.validation_examples or eval.tasks",
    )
    require("{prompt}" in data.prompt_template, "data.prompt_template must contain {prompt}")
    require(
        "\\n" not in data.prompt_template,
        "data.prompt_template holds a backslash and an n, not a line break: on a command line write 'data.prompt_template=\"…\\n\"'",
    )


def _stream(config: Config) -> None:
    data = config.data
    start = f"data.stream={data.stream}"
    require(
        data.sources == [],
        f"{start} works with data.path, not with data.sources: put the files under one pattern",
    )
    require(
        data.subset is None and data.split == "train",
        f"{start}: data.path names files, so data.subset and data.split mean nothing",
    )
    require(
        config.train.max_steps > 0,
        f"{start}: how many steps an epoch has is not known before the end; set train.max_steps",
    )
    require(
        data.validation_examples == 0,
        f"{start}: not all examples are known, to hold some out; set data.validation_path instead",
    )
    require(
        config.objective.lower_quantile is None and config.objective.upper_quantile is None,
        f"{start}: quantiles are measured on the whole training set; set objective.lower and objective.upper instead",
    )
    require(
        config.controller.base_stats == "",
        f"{start}: controller.base_stats is of a whole training set; leave it out",
    )


def _numbers(config: Config) -> None:
    positive = (
        "train.hang_timeout",
        "train.global_batch_size",
        "train.micro_batch_size",
        "train.replicas",
        "train.max_nonfinite_steps",
        "data.max_length",
        "data.pad_multiple",
    )
    positive += ("log.every", "checkpoint.keep_last", "eval.limit", "eval.max_tokens")
    for name in positive:
        require(get(config, name) >= 1, f"{name}={get(config, name)}: must be at least 1")
    for name in (
        "seed",
        "data.stream",
        "data.validation_examples",
        "train.lr",
        "train.max_steps",
        "train.weight_decay",
        "train.clip_norm",
        "train.loss_chunk",
        "checkpoint.every",
        "eval.every",
    ):
        require(get(config, name) >= 0, f"{name}={get(config, name)}: must not be negative")
    for name in (
        "train.warmup_ratio",
        "train.decay_ratio",
        "train.lr_min_ratio",
        "controller.begin",
        "controller.finish",
    ):
        require(0 <= get(config, name) <= 1, f"{name}={get(config, name)}: must lie in [0, 1]")


def _train(config: Config) -> None:
    train = config.train
    require(train.eps > 0, f"train.eps={train.eps}: must be above 0")
    require(
        train.lr_schedule == "wsd" or train.decay_ratio == 0.2,
        f"train.decay_ratio={train.decay_ratio} has no effect with train.lr_schedule={train.lr_schedule}: use wsd",
    )
    require(
        train.lr_schedule != "constant" or train.lr_min_ratio == 0.0,
        f"train.lr_min_ratio={train.lr_min_ratio} has no effect with train.lr_schedule=constant: use cosine, linear or wsd",
    )
    require(
        train.lr_schedule != "constant" or config.controller.name != "lr",
        "controller.name=lr follows the learning rate, which train.lr_schedule=constant never lowers: use linear or cosine for one of them",
    )
    for pattern in config.model.freeze:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"model.freeze: {pattern!r} is not a regular expression: {error}"
            ) from None
    require(
        train.max_steps > 0 or train.epochs > 0,
        "train.max_steps and train.epochs are both 0: set one of them",
    )
    require(
        len(train.betas) == 2 and all(0 <= beta < 1 for beta in train.betas),
        f"train.betas={train.betas}: two numbers in [0, 1)",
    )
    require(
        train.lr_schedule != "wsd" or train.warmup_ratio + train.decay_ratio <= 1,
        "train.warmup_ratio + train.decay_ratio must not exceed 1",
    )
    require(
        config.model.attention == "sdpa"
        or train.device != "cpu"
        or config.model.attention == "auto",
        f"model.attention={config.model.attention} needs a GPU; use sdpa or auto",
    )


def _objective(config: Config) -> None:
    objective = build_objective(config.objective)
    validate_controller(config.controller, config.objective, objective)
    exempts = config.objective.exempt == "none" or config.objective.name != "nll"
    require(
        exempts,
        f"objective.exempt={config.objective.exempt} has no effect with objective.name=nll, which is what exempt tokens keep",
    )
    require(
        config.objective.normalizer == "all" or objective.mask is not None,
        f"objective.normalizer=kept has no effect with objective.name={config.objective.name}, which masks nothing: use all",
    )
    require(
        not (config.objective.unit_mass and config.objective.normalizer == "kept"),
        "objective.unit_mass=true with objective.normalizer=kept: masked tokens have the weight 0, so both divide by the kept share, and "
        "together by its square; use objective.normalizer=all",
    )
    require(
        not config.objective.unit_mass or config.objective.name != "nll",
        "objective.unit_mass=true has no effect with objective.name=nll, whose weights are all 1",
    )


def _loss_reduction(config: Config) -> None:
    """How packs divide among ranks, BatchSampler checks."""
    if config.train.loss_reduction == "step":
        return
    start, train = "train.loss_reduction=micro_batch", config.train
    require(
        not config.data.packing,
        f"{start} with data.packing=true: the number of packs in a step, and with it the size of the "
        "summed gradient, would depend on the lengths of its examples; set data.packing=false",
    )
    require(
        not config.objective.unit_mass,
        f"{start} with objective.unit_mass=true: the one keeps the gradient's size independent of the "
        "objective, the other multiplies it by the number of micro-batches; set objective.unit_mass=false",
    )
    require(
        train.global_batch_size % train.micro_batch_size == 0,
        f"{start}: train.global_batch_size={train.global_batch_size} is no multiple of "
        f"train.micro_batch_size={train.micro_batch_size}, and the examples of a smaller micro-batch "
        "would weigh more; choose sizes that divide",
    )
