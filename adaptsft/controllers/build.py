"""From the group `controller` of the configuration to a controller; refuses one that would move
nothing, or move something out of its range."""

import math
from collections.abc import Iterable

from adaptsft.config.schema import ControllerConfig, ObjectiveConfig
from adaptsft.config.unread import unread
from adaptsft.config.user_code import is_user_code, load
from adaptsft.controllers import (  # noqa: F401 (they fill the registry)
    auto,
    schedules,
    short_steps,
)
from adaptsft.controllers.base import REGISTRY, Controller, completed, parameters
from adaptsft.controllers.schedules import Schedule
from adaptsft.controllers.trial import try_out
from adaptsft.errors import ConfigError, require, require_known
from adaptsft.objectives.base import Objective
from adaptsft.objectives.build import THRESHOLDS

OWN = "MODULE:CLASS"  # how a user's own is named


def controller_class(name: str) -> type[Controller] | None:
    """That of controller.name; None for `fixed`. Raises ConfigError."""
    if name == "fixed":
        return None
    start = f"controller.name={name}"
    if not is_user_code(name):
        require_known(f"{start} is unknown", name, ["fixed", *REGISTRY, OWN])
        return REGISTRY[name]
    cls = load("controller.name", name).value
    require(
        isinstance(cls, type) and issubclass(cls, Controller) and cls not in (Controller, Schedule),
        f"{start}: is no subclass of adaptsft.controllers.base.Controller",
    )
    try:
        return completed(name, start, cls)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def acts_through(config: ControllerConfig) -> str:
    """The objective of objective.name=auto."""
    cls = controller_class(config.name)
    return "nll" if cls is None or issubclass(cls, Schedule) else cls.objective


def build_controller(config: ControllerConfig) -> Controller | None:
    """The configured controller with its parameters; None for controller.name=fixed.
    `validate_controller` has checked the names."""
    cls = controller_class(config.name)
    if cls is None:
        return None
    if issubclass(cls, Schedule):
        return cls(settings=config, **config.params)
    return cls(**config.params)


def validate_controller(
    config: ControllerConfig, objective_config: ObjectiveConfig, objective: Objective
) -> None:
    """Raises ConfigError naming key, value and fix."""
    cls = controller_class(config.name)
    if cls is None:
        return
    _parameters(config, cls)
    require(config.shrinkage >= 0, f"controller.shrinkage={config.shrinkage}: must not be negative")
    if issubclass(cls, Schedule):
        moved = (config.parameter,)
        _schedule(config, cls)
    else:
        moved = cls.moves
    for field in moved:
        require(
            field in objective.uses,
            f"controller.name={config.name} moves {field}, which objective.name="
            f"{objective_config.name} does not read: {_fix(cls, field, objective)}",
        )
    _not_fixed_too(config, objective_config, cls, moved)
    if is_user_code(config.name) and (controller := build_controller(config)):
        try_out(
            f"controller.name={config.name}", controller, load("controller.name", config.name).path
        )


def unread_by_controller(config: ControllerConfig, objective: ObjectiveConfig) -> list[str]:
    """Warnings about keys of the group `controller` that this controller does not read."""
    cls, name = controller_class(config.name), f"controller.name={config.name}"
    warnings = []
    for key in ("parameter", "start", "end", "begin", "finish", "points"):
        if cls is None or key not in cls.reads:
            readers = [other for other, known in REGISTRY.items() if key in known.reads]
            warnings += unread("controller", config, [key], name, readers)
    closed = [other for other, known in REGISTRY.items() if not issubclass(known, Schedule)]
    if cls is None:
        warnings += unread("controller", config, ["params"], name, closed)
    measuring = [other for other in closed if REGISTRY[other].moves]
    if cls is None or issubclass(cls, Schedule) or not cls.moves:
        warnings += unread("controller", config, ["shrinkage"], name, measuring)
        if objective.lower_quantile is None and objective.upper_quantile is None:
            readers = [*measuring, "objective.lower_quantile", "objective.upper_quantile"]
            warnings += unread("controller", config, ["base_stats"], name, readers)
    return warnings


def _parameters(config: ControllerConfig, cls: type[Controller]) -> None:
    for key, value in config.params.items():
        what = f"controller.params.{key} is no parameter of {config.name}"
        require_known(what, key, parameters(cls))
        low, high = cls.bounds.get(key, (-math.inf, math.inf))
        require(
            low <= value <= high and math.isfinite(value),
            f"controller.params.{key}={value}: must lie in [{low:g}, {high:g}]",
        )
    if problem := cls(**config.params).check():
        require(False, f"controller.params of {config.name}: {problem}")


def _schedule(config: ControllerConfig, cls: type[Schedule]) -> None:
    require(
        "begin" not in cls.reads or config.begin <= config.finish,
        f"controller.begin={config.begin} lies after controller.finish={config.finish}",
    )
    values = {key: getattr(config, key) for key in ("start", "end") if key in cls.reads}
    if "points" in cls.reads:
        given = f"controller.points={config.points}"
        require(
            config.points != [] and all(len(point) == 2 for point in config.points),
            f"{given}: must be pairs [share of the run, value]",
        )
        shares = [point[0] for point in config.points]
        rising = shares == sorted(set(shares)) and shares[0] >= 0 and shares[-1] <= 1
        require(rising, f"{given}: the shares of the run must rise, within [0, 1]")
        values |= {f"points[{number}]": point[1] for number, point in enumerate(config.points)}
    high, allowed = (math.inf, ">= 0") if config.parameter == "alpha" else (1, "in [0, 1]")
    for name, value in values.items():
        require(
            0 <= value <= high and math.isfinite(value),
            f"controller.{name}={value}: {config.parameter} must be {allowed}",
        )


def _fix(cls: type[Controller], field: str, objective: Objective) -> str:
    if is_user_code(objective.name):
        return f"give {objective.name} a parameter of that name, which it then follows"
    if not issubclass(cls, Schedule):
        return f"leave objective.name out (it acts through {cls.objective})"
    fix = f"use objective.name={'threshold' if field in THRESHOLDS else 'alpha'}"
    return f"{fix}, or controller.parameter=lower" if "lower" in objective.uses else fix


def _not_fixed_too(
    config: ControllerConfig,
    objective: ObjectiveConfig,
    cls: type[Controller],
    moved: Iterable[str],
) -> None:
    default = ObjectiveConfig()
    for name in moved:
        value = getattr(objective, name)
        fix = f"leave objective.{name} out"
        if "start" in cls.reads:
            fix = "set controller.start and controller.end instead"
        require(
            value == getattr(default, name),
            f"objective.{name}={value} is overridden by controller.name={config.name}: {fix}",
        )
        require(
            getattr(objective, f"{name}_quantile", None) is None,
            f"controller.name={config.name} and objective.{name}_quantile both set {name}: choose "
            "one",
        )
