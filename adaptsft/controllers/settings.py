"""From what a user of AdaptiveObjective names to the groups `objective` and `controller` of the
configuration, checked as those of adaptsft.train are."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adaptsft.config.load import group_of
from adaptsft.config.schema import ControllerConfig, ObjectiveConfig
from adaptsft.config.user_code import is_user_code
from adaptsft.controllers.base import REGISTRY
from adaptsft.controllers.build import (
    acts_through,
    controller_class,
    unread_by_controller,
    validate_controller,
)
from adaptsft.controllers.schedules import Schedule
from adaptsft.errors import require, require_known, warn
from adaptsft.objectives import base as objectives
from adaptsft.objectives.base import Objective
from adaptsft.objectives.build import build_objective, of_function, unread_by_objective
from adaptsft.objectives.trial import try_out

Settings = tuple[ObjectiveConfig, ControllerConfig, Objective]
# keys that need what adaptsft.train has: the data, the base model, the gradients of a step
OF_THE_TRAINER = {
    "objective": {
        "lower_quantile": "measure the quantile yourself and set objective.lower",
        "upper_quantile": "measure the quantile yourself and set objective.upper",
        "normalizer": "divide by the tokens that you mean: loss(…, num_tokens=…)",
        "reference": "use an objective that reads the base model, and loss(…, reference=…)",
        "base_tokens": "use loss(…, reference=…)",
        "exempt": "give the ids of these tokens, exempt=[…]",
        "unit_mass": "leave it out",
    },
    "controller": {"base_stats": "leave it out: the controller measures the first steps"},
}


def settings_of(
    objective: str | Callable[..., Any] | Mapping[str, Any] | ObjectiveConfig,
    controller: str | Mapping[str, Any] | ControllerConfig | None,
) -> Settings:
    """The two groups, and the objective that they name. A name that is a controller's stands for
    that controller, and objective auto for the one that the controller acts through (schedules:
    alpha). Raises ConfigError.

    Groups that are given as such are those of a configuration that is resolved already.
    """
    if isinstance(objective, ObjectiveConfig) and isinstance(controller, ControllerConfig):
        return objective, controller, build_objective(objective)
    if isinstance(objective, str) and controller is None:
        names = ["auto", *REGISTRY, *objectives.REGISTRY, "threshold"]
        if not is_user_code(objective):
            require_known(f"objective {objective} is unknown", objective, dict.fromkeys(names))
        if objective in REGISTRY:
            objective, controller = "auto", objective
    own = objective if callable(objective) else None
    if own is not None:
        objective = getattr(own, "__name__", "own")
    config = _group(ObjectiveConfig, "objective", objective)
    if controller is None:
        controller = "auto" if config.name == "auto" and own is None else "fixed"
    moving = _group(ControllerConfig, "controller", controller)
    if own is not None:
        function = of_function(f"objective {config.name}", config.name, own)
        code = getattr(inspect.unwrap(own), "__code__", None)  # a partial has none
        file = Path(code.co_filename if code else "")
        try_out(f"objective {config.name}", function, file)
    else:
        if config.name == "auto":
            cls = controller_class(moving.name)
            schedule = cls is not None and issubclass(cls, Schedule)
            config.name = "alpha" if schedule else acts_through(moving)
        function = build_objective(config)
    validate_controller(moving, config, function)
    warnings = unread_by_objective(config, function) + unread_by_controller(moving, config)
    for warning in warnings:
        warn(warning)
    return config, moving, function


def _group(cls: type, name: str, given: Any) -> Any:
    if isinstance(given, cls):
        return dataclasses.replace(given)
    values = {"name": given} if isinstance(given, str) else given
    group, default = group_of(name, values), cls()
    for key, instead in OF_THE_TRAINER[name].items():
        value = getattr(group, key)
        require(
            value == getattr(default, key),
            f"{name}.{key}={value} is a setting of adaptsft.train, which has data and model at "
            f"hand: {instead}",
        )
    return group
