"""What a configuration must be, beyond its types: every refusal names key, value and fix. Nothing
is loaded."""

import dataclasses
import datetime
import re
from pathlib import Path

from adaptsft.config.adapters import check_adapters
from adaptsft.config.load import check_choices, parse_arguments
from adaptsft.config.schema import LOSS_ON, Config, LoraConfig, TrainConfig, get, packs_at_once
from adaptsft.config.unread import unread
from adaptsft.controllers.build import (
    acts_through,
    unread_by_controller,
    validate_controller,
)
from adaptsft.errors import ConfigError, require, require_known, warn
from adaptsft.objectives.base import Objective
from adaptsft.objectives.build import build_objective, unread_by_objective

POSITIVE = (
    "train.hang_timeout",
    "train.global_batch_size",
    "train.replicas",
    "train.context_parallel",
    "train.max_nonfinite_steps",
    "data.max_length",
    "data.pad_multiple",
    "log.every",
    "checkpoint.keep_last",
    "eval.limit",
    "eval.samples",
    "eval.max_tokens",
)
NOT_NEGATIVE = (
    "seed",
    "model.lora.rank",
    "data.stream",
    "data.validation_examples",
    "train.lr",
    "train.max_steps",
    "train.weight_decay",
    "train.clip_norm",
    "train.loss_chunk",
    "train.gc_every",
    "checkpoint.every",
    "eval.every",
)
SHARES = (
    "train.warmup_ratio",
    "train.decay_ratio",
    "train.lr_min_ratio",
    "controller.begin",
    "controller.finish",
)


def load_config(arguments: list[str]) -> Config:
    """The configuration from `[CONFIG.yaml] key=value …` (later wins), with a warning for each
    setting that has no effect. Raises ConfigError; loads no model and no data."""
    config = parse_arguments(arguments)
    resolve_and_validate(config)
    return config


def resolve_and_validate(config: Config) -> None:
    """Refuse what cannot work, and warn of what has no effect. Raises ConfigError.

    objective.name=auto becomes the objective that it means, so that the configuration saved with
    the run names it.
    """
    if config.objective.name == "auto":
        config.objective.name = acts_through(config.controller)
    check_choices(config)
    if config.data.packing in ("true", "false"):  # text, in quotes
        config.data.packing = config.data.packing == "true"
    require(
        config.run_dir != "",
        "run_dir is not set: add run_dir=runs/NAME, the folder that receives checkpoints and the "
        "final model",
    )
    require(
        config.model.path != "",
        "model.path is not set: add model.path=NAME_OR_FOLDER of a Hugging Face causal language "
        "model",
    )
    _data(config)
    if config.data.stream > 0:
        _stream(config)
    _numbers(config)
    _train(config)
    _log(config)
    check_adapters(config.model)
    objective = _objective(config)
    if config.train.context_parallel > 1:
        _context_parallel(config, objective)
    _loss_reduction(config)
    warnings = unread_by_objective(config.objective, objective)
    warnings += unread_by_controller(config.controller, config.objective)
    warnings += _unread_by_lr_schedule(config.train)
    if config.model.lora.rank == 0:
        keys = [declared.name for declared in dataclasses.fields(LoraConfig)]
        beside, readers = "model.lora.rank=0", ["any other rank"]
        warnings += unread("model.lora", config.model.lora, keys, beside, readers)
    for warning in warnings:
        warn(warning)


def _data(config: Config) -> None:
    data = config.data
    require(
        data.path != "" or data.sources != [],
        "no training data: set data.path=FILE_OR_NAME or data.sources",
    )
    require(
        data.path == "" or data.sources == [],
        "data.path and data.sources are both set: for several sources use data.sources alone "
        "(data.path= unsets the other)",
    )
    alone = data.fields == {} and data.subset is None and data.split == "train"
    require(
        alone or data.path != "",
        "data.fields, data.subset and data.split belong to data.path; with data.sources, give them "
        "in each source",
    )
    for number, source in enumerate(data.sources):
        key = f"data.sources[{number}]"
        require(source.path != "", f"{key}.path is not set")
        require(source.weight > 0, f"{key}.weight={source.weight}: must be above 0")
        if source.loss_on:
            require_known(f"{key}.loss_on={source.loss_on}", source.loss_on, LOSS_ON)
    require(
        data.validation_path == "" or data.validation_examples == 0,
        "set either data.validation_path or data.validation_examples, not both",
    )
    held_out = data.validation_path != "" or data.validation_examples > 0
    require(
        config.eval.every == 0 or held_out or config.eval.tasks != [],
        "eval.every is set but nothing is evaluated: set data.validation_path, "
        "data.validation_examples or eval.tasks",
    )
    try:
        datetime.date.fromisoformat(data.date)
    except ValueError:
        raise ConfigError(f"data.date={data.date}: must be a day, YYYY-MM-DD") from None
    require("{prompt}" in data.prompt_template, "data.prompt_template must contain {prompt}")
    require(
        "\\n" not in data.prompt_template,
        "data.prompt_template holds a backslash and an n, not a line break: on a command line "
        "write 'data.prompt_template=\"…\\n\"'",
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
        f"{start}: quantiles are measured on the whole training set; set objective.lower and "
        "objective.upper instead",
    )
    require(
        config.controller.base_stats == "",
        f"{start}: controller.base_stats is of a whole training set; leave it out",
    )
    require(
        config.objective.base_tokens == "",
        f"{start}: objective.base_tokens is of a whole training set; leave it out, and use an "
        "objective that does not read the base model",
    )


def _numbers(config: Config) -> None:
    for name in POSITIVE:
        require(get(config, name) >= 1, f"{name}={get(config, name)}: must be at least 1")
    for name in NOT_NEGATIVE:
        require(get(config, name) >= 0, f"{name}={get(config, name)}: must not be negative")
    for name in SHARES:
        require(0 <= get(config, name) <= 1, f"{name}={get(config, name)}: must lie in [0, 1]")


def _train(config: Config) -> None:
    train, size = config.train, config.train.micro_batch_size
    require(
        size == "auto" or (isinstance(size, int) and size >= 1),
        f"train.micro_batch_size={size}: must be auto, or a whole number of at least 1",
    )
    weight = train.router_aux_loss or 0.0
    require(weight >= 0, f"train.router_aux_loss={weight}: must not be negative")
    require(train.eps > 0, f"train.eps={train.eps}: must be above 0")
    require(
        train.lr_schedule != "constant" or config.controller.name != "lr",
        "controller.name=lr follows the learning rate, which train.lr_schedule=constant never "
        "lowers: use linear or cosine for one of them",
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
        config.model.attention in ("sdpa", "auto", "eager") or train.device != "cpu",
        f"model.attention={config.model.attention} needs a GPU; use sdpa or auto",
    )
    require(
        config.model.attention != "eager" or config.data.packing is not True,
        "model.attention=eager knows no documents: set data.packing=false",
    )


def _context_parallel(config: Config, objective: Objective) -> None:
    """How ranks and heads divide, context_group and check_heads check."""
    start = f"train.context_parallel={config.train.context_parallel}"
    require(
        config.model.attention != "eager",
        f"{start} is done by document attention, which model.attention=eager is not; use auto",
    )
    require(
        not objective.whole_batch,
        f"{start}: objective.name={config.objective.name} reads all tokens of a micro-batch at "
        "once, and each rank has a part of them: set train.context_parallel=1, or use another "
        "objective",
    )


def _log(config: Config) -> None:
    log = config.log
    require(
        len(set(log.trackers)) == len(log.trackers),
        f"log.trackers={log.trackers}: names a tracker twice",
    )
    require(
        log.profile == [] or (len(log.profile) == 2 and 0 <= log.profile[0] < log.profile[1]),
        f"log.profile={log.profile}: must be [start, stop] with 0 <= start < stop, such as "
        "[10, 13] for steps 11, 12 and 13",
    )


def _unread_by_lr_schedule(train: TrainConfig) -> list[str]:
    schedule, warnings = f"train.lr_schedule={train.lr_schedule}", []
    if train.lr_schedule != "wsd":
        warnings += unread("train", train, ["decay_ratio"], schedule, ["wsd"])
    if train.lr_schedule == "constant":
        readers = ["cosine", "linear", "wsd"]
        warnings += unread("train", train, ["lr_min_ratio"], schedule, readers)
    return warnings


def _objective(config: Config) -> Objective:
    objective = build_objective(config.objective)
    validate_controller(config.controller, config.objective, objective)
    require(
        "reference" not in objective.needs or config.objective.base_tokens != "",
        f"objective.name={config.objective.name}"
        + (" with objective.reference=base" if config.objective.reference == "base" else "")
        + " reads the base model's statistics of every target token: set objective.base_tokens="
        f"{Path(config.run_dir) / 'diagnosis' / 'base_tokens.safetensors'}, which `python -m "
        "adaptsft.diagnose` with the arguments of this run and sample=all per_token=true writes",
    )
    require(
        not (config.objective.unit_mass and config.objective.normalizer == "kept"),
        "objective.unit_mass=true with objective.normalizer=kept: masked tokens have the weight 0, "
        "so both divide by the kept share, and together by its square; use "
        "objective.normalizer=all",
    )
    return objective


def _loss_reduction(config: Config) -> None:
    """How packs divide among ranks, BatchSampler checks."""
    if config.train.loss_reduction == "step":
        return
    start, train = "train.loss_reduction=micro_batch", config.train
    require(
        config.data.packing is False,
        f"{start} with data.packing={str(config.data.packing).lower()}: the number of packs in a "
        "step, and with it the size of the summed gradient, would depend on the lengths of its "
        "examples; set data.packing=false",
    )
    require(
        not config.objective.unit_mass,
        f"{start} with objective.unit_mass=true: the one keeps the gradient's size independent of "
        "the objective, the other multiplies it by the number of micro-batches; set "
        "objective.unit_mass=false",
    )
    require(
        train.micro_batch_size != "auto",
        f"{start}: train.micro_batch_size is part of what is learned, and auto depends on the GPU: "
        "set a number, such as train.micro_batch_size=4",
    )
    require(
        train.global_batch_size % packs_at_once(train) == 0,
        f"{start}: train.global_batch_size={train.global_batch_size} is no multiple of "
        f"train.micro_batch_size={train.micro_batch_size}, and the examples of a smaller "
        "micro-batch would weigh more; choose sizes that divide",
    )
