"""The configured objective, and the table of all of them: `python -m adaptsft.objectives.build`."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.errors import require
from adaptsft.objectives.base import REGISTRY, Objective
from adaptsft.objectives.library import threshold  # importing it fills the registry

NLL = REGISTRY["nll"]


def build_objective(config: ObjectiveConfig) -> Objective:
    """The configured objective.

    Raises ConfigError for an unknown name, base or parameter, a value out of range, and a key that this objective would ignore.
    """
    name = "nll" if config.name == "auto" else config.name
    _known(f"objective.name={name} is unknown", name, [*REGISTRY, "threshold"])
    if name == "threshold":
        _known(f"objective.base={config.base} is unknown", config.base, REGISTRY)
        objective = threshold(_with_parameters(config.base, config.params))
    else:
        objective = _with_parameters(name, config.params)
        require(
            config.base == "nll",
            f"objective.base={config.base} has no effect: only objective.name=threshold has a base",
        )

    readers = {
        key: [name for name, known in REGISTRY.items() if key in known.uses]
        for key in ("alpha", "lower", "upper")
    }
    for key, unset in (
        ("alpha", 0.0),
        ("lower", 0.0),
        ("upper", 1.0),
        ("lower_quantile", None),
        ("upper_quantile", None),
    ):
        value, parameter = getattr(config, key), key.removesuffix("_quantile")
        names = ", ".join(readers[parameter] + ["threshold"] * (parameter != "alpha"))
        message = f"objective.{key}={value} has no effect with objective.name={config.name}; it is read by {names}"
        require(value == unset or parameter in objective.uses, message)
        in_range = value is None or 0 <= value <= (1e6 if key == "alpha" else 1)
        require(
            in_range,
            f"objective.{key}={value}: must lie in [0, {'1e6' if key == 'alpha' else '1'}]",
        )
    for lower, upper in (("lower", "upper"), ("lower_quantile", "upper_quantile")):
        low, high = getattr(config, lower), getattr(config, upper)
        ordered = low is None or high is None or low <= high
        require(
            ordered,
            f"objective.{lower}={low} is above objective.{upper}={high}: no token would be learned",
        )
    for key, unset in (("lower", 0.0), ("upper", 1.0)):
        both = getattr(config, key) != unset and getattr(config, f"{key}_quantile") is not None
        require(
            not both,
            f"objective.{key} and objective.{key}_quantile both set the {key} threshold: choose one",
        )
    return objective


def with_exempt(
    objective: Objective, config: ObjectiveConfig, tokenizer: Any, device: torch.device
) -> Objective:
    """The objective with objective.exempt's tokens of this tokenizer left to NLL."""
    if config.exempt == "none":
        return objective
    ids = [tokenizer.eos_token_id] if config.exempt == "eos" else tokenizer.all_special_ids
    ids = [number for number in ids if number is not None]
    require(ids != [], f"objective.exempt={config.exempt}: the tokenizer has no such token")
    return dataclasses.replace(objective, exempt=torch.tensor(ids, device=device))


def describe_objectives() -> str:
    """A Markdown table of all registered objectives: loss, s, parameters with defaults, fields of Control that are read."""
    table = [("name", "loss", "s", "parameters", "reads"), ("---",) * 5]
    for name, objective in [*REGISTRY.items(), ("threshold", threshold(REGISTRY["nll"]))]:
        document = threshold.__doc__ if name == "threshold" else objective.function.__doc__
        lines = dict(
            line.strip().split(": ", 1)
            for line in (document or "").splitlines()
            if line.strip().startswith(("loss: ", "s: "))
        )
        parameters = ", ".join(f"{key}={value:g}" for key, value in objective.parameters.items())
        reads = ", ".join(sorted(objective.uses | objective.needs))
        table.append((name, lines.get("loss", ""), lines.get("s", ""), parameters, reads))
    widths = [max(len(row[column]) for row in table) for column in range(5)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in table
    )


def _known(what: str, value: str, names: Iterable[str]) -> None:
    names = list(names)
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    require(value in names, f"{what}: {hint}there is {', '.join(names) or 'none'}")


def _with_parameters(name: str, given: Mapping[str, float]) -> Objective:
    objective = REGISTRY[name]
    for key, value in given.items():
        _known(f"objective.params.{key} is no parameter of {name}", key, objective.parameters)
        low, high = objective.bounds.get(key, (-math.inf, math.inf))
        in_range = low <= value <= high and math.isfinite(value)
        require(
            in_range, f"objective.params.{key}={value}: must lie in [{low:g}, {high:g}] for {name}"
        )
    parameters = objective.parameters | dict(given)
    return dataclasses.replace(
        objective,
        function=partial(objective.function, **parameters),
        mask=objective.mask and partial(objective.mask, **parameters),
        whole_batch=objective.whole_batch or bool(parameters.get("batch", 0)),
    )


if __name__ == "__main__":
    print(describe_objectives())
