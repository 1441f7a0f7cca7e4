"""From the group `objective` of the configuration to an objective."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.config.unread import unread
from adaptsft.errors import require, require_known
from adaptsft.objectives import library  # noqa: F401 (it fills the registry)
from adaptsft.objectives.base import REGISTRY, Objective
from adaptsft.objectives.reference import under_reference
from adaptsft.objectives.state import MOVABLE
from adaptsft.objectives.threshold import threshold

THRESHOLDS = ("lower", "upper")  # fields of ObjectiveState
NLL = REGISTRY["nll"]
LIMITS = {"alpha": 1e6, "lower": 1.0, "upper": 1.0, "floor": 1.0}  # each from 0


def build_objective(config: ObjectiveConfig) -> Objective:
    """The configured objective.

    Raises ConfigError for an unknown name, base or parameter, a value out of range, and values that
    contradict each other.
    """
    name = "nll" if config.name == "auto" else config.name
    require_known(f"objective.name={name} is unknown", name, [*REGISTRY, "threshold"])
    if name == "threshold":
        require_known(f"objective.base={config.base} is unknown", config.base, REGISTRY)
        objective = threshold(_with_parameters(config.base, config.params))
    else:
        objective = _with_parameters(name, config.params)
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


def _with_parameters(name: str, given: Mapping[str, float]) -> Objective:
    objective = REGISTRY[name]
    for key, value in given.items():
        what = f"objective.params.{key} is no parameter of {name}"
        require_known(what, key, objective.parameters)
        low, high = objective.bounds.get(key, (-math.inf, math.inf))
        _in_range(f"objective.params.{key}", value, low, high, f" for {name}")
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
