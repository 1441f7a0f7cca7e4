"""From the group `objective` of the configuration to an objective."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.config.unread import unread
from adaptsft.config.user_code import is_user_code, load
from adaptsft.errors import ConfigError, require, require_known
from adaptsft.objectives import library  # noqa: F401 (it fills the registry)
from adaptsft.objectives.base import REGISTRY, Objective, as_objective
from adaptsft.objectives.reference import under_reference
from adaptsft.objectives.state import MOVABLE
from adaptsft.objectives.threshold import threshold
from adaptsft.objectives.trial import try_out

THRESHOLDS = ("lower", "upper")  # fields of ObjectiveState
NLL = REGISTRY["nll"]
OWN = "MODULE:FUNCTION"  # how a user's own is named
LIMITS = {"alpha": 1e6, "lower": 1.0, "upper": 1.0, "floor": 1.0}  # each from 0


def build_objective(config: ObjectiveConfig) -> Objective:
    """The configured objective.

    Raises ConfigError for an unknown name, base or parameter, a value out of range, values that
    contradict each other, and an objective of the user's own that does not work.
    """
    if config.name == "threshold":
        objective = threshold(_configured("objective.base", config.base, config.params))
    else:
        name = "nll" if config.name == "auto" else config.name
        objective = _configured("objective.name", name, config.params)
    if config.reference == "base":
        objective = under_reference(objective)
    for key in MOVABLE:
        _in_range(f"objective.{key}", getattr(config, key), 0.0, LIMITS[key])
    for key in ("lower_quantile", "upper_quantile"):
        if (value := getattr(config, key)) is not None:
            _in_range(f"objective.{key}", value, 0.0, 1.0)
    for lower, upper in (("lower", "upper"), ("lower_quantile", "upper_quantile")):
        low, high = getattr(config, lower), getattr(config, upper)
        require(
            low is None or high is None or low <= high,
            f"objective.{lower}={low} is above objective.{upper}={high}: no token would be learned",
        )
    for key, unset in (("lower", 0.0), ("upper", 1.0)):
        both = getattr(config, key) != unset and getattr(config, f"{key}_quantile") is not None
        require(
            not both,
            f"objective.{key} and objective.{key}_quantile both set the {key} threshold",
        )
    return objective


def unread_by_objective(config: ObjectiveConfig, objective: Objective) -> list[str]:
    """Warnings about keys of the group `objective` that this objective does not read."""
    name = f"objective.name={config.name}"

    def reading(field: str) -> list[str]:
        names = [name for name, known in REGISTRY.items() if field in known.uses]
        return [*names, "threshold"] if field in THRESHOLDS else names

    warnings = []
    if config.name != "threshold":
        warnings += unread("objective", config, ["base"], name, ["threshold"])
    for field in MOVABLE:
        if field not in objective.uses:
            keys = [field, f"{field}_quantile"] if field in THRESHOLDS else [field]
            warnings += unread("objective", config, keys, name, reading(field))
    if objective.mask is None:
        masking = [name for name, known in REGISTRY.items() if known.mask is not None]
        warnings += unread("objective", config, ["normalizer"], name, [*masking, "threshold"])
    if "reference" not in objective.needs:
        needing = [name for name, known in REGISTRY.items() if "reference" in known.needs]
        readers = ["objective.reference=base", *needing]
        warnings += unread("objective", config, ["base_tokens"], name, readers)
    if config.name == "nll":  # its weights are all 1, and it is what exempt tokens keep
        keys = ["exempt", "unit_mass"]
        warnings += unread("objective", config, keys, name, ["every other objective"])
    return warnings


def exempt_ids(config: ObjectiveConfig, tokenizer: Any, ends: list[int]) -> list[int]:
    """The ids of this tokenizer's tokens that objective.exempt leaves to NLL; `ends` are those that
    end a turn or a text. Raises ConfigError where it has no such token."""
    if config.exempt == "none":
        return []
    special = tokenizer.all_special_ids if config.exempt == "special" else []
    ids = list(dict.fromkeys([*ends, *special]))
    require(ids != [], f"objective.exempt={config.exempt}: the tokenizer has no such token")
    return ids


def _configured(key: str, name: str, given: Mapping[str, float]) -> Objective:
    """The objective of this name with its parameters."""
    if not is_user_code(name):
        names = [*REGISTRY, *["threshold"] * (key == "objective.name"), OWN]
        require_known(f"{key}={name} is unknown", name, names)
        return _with_parameters(REGISTRY[name], given)
    code = load(key, name)
    objective = _with_parameters(of_function(f"{key}={name}", name, code.value), given)
    try_out(f"{key}={name}", objective, code.path)
    return objective


def of_function(start: str, name: str, function: Any) -> Objective:
    """That of a function of the user's, with the options that it was registered with, if it was.
    Raises ConfigError, which begins with `start`."""
    for known in REGISTRY.values():
        if getattr(known.function, "__wrapped__", None) is function:
            return dataclasses.replace(known, name=name)
    require(
        callable(function) and not isinstance(function, type),
        f"{start}: is no function; an objective is a function of what it reads, such as logp",
    )
    try:
        return as_objective(name, start, function)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _with_parameters(objective: Objective, given: Mapping[str, float]) -> Objective:
    for key, value in given.items():
        what = f"objective.params.{key} is no parameter of {objective.name}"
        require_known(what, key, objective.parameters)
        low, high = objective.bounds.get(key, (-math.inf, math.inf))
        _in_range(f"objective.params.{key}", value, low, high, f" for {objective.name}")
    parameters = objective.parameters | dict(given)
    return dataclasses.replace(
        objective,
        function=partial(objective.function, **parameters),
        mask=objective.mask and partial(objective.mask, **parameters),
        whole_batch=objective.whole_batch or bool(parameters.get("batch", 0)),
    )


def _in_range(key: str, value: float, low: float, high: float, where: str = "") -> None:
    require(
        low <= value <= high and math.isfinite(value),
        f"{key}={value}: must lie in [{low:g}, {high:g}]{where}",
    )
