"""Refuses a controller that would move nothing, or move something out of its range; and the table of all controllers."""

import difflib
import inspect
import math
from collections.abc import Iterable

from adaptsft.config.schema import ControllerConfig, ObjectiveConfig
from adaptsft.controllers import auto, schedules  # noqa: F401 (they fill the registry)
from adaptsft.controllers.base import REGISTRY, parameters
from adaptsft.controllers.schedules import Schedule
from adaptsft.errors import require
from adaptsft.objectives.base import Objective

SHARES = (
    "window",
    "fast",
    "slow",
    "decay",
    "q",
    "cap",
    "share",
    "floor_from",
    "floor_to",
)  # parameters that must lie in [0, 1]
# what each schedule reads, besides `parameter`
SHAPE = ("start", "end", "begin", "finish")
READS = {"linear": SHAPE, "cosine": SHAPE, "lr": ("start", "end"), "piecewise": ("points",)}
UNSET = ControllerConfig()


def acts_through(config: ControllerConfig) -> str:
    """The objective of objective.name=auto."""
    cls = REGISTRY.get(config.name)
    return "nll" if cls is None or issubclass(cls, Schedule) else cls.objective


def validate_controller(
    config: ControllerConfig, objective_config: ObjectiveConfig, objective: Objective
) -> None:
    """Raises ConfigError naming key, value and fix."""
    names = ["fixed", *REGISTRY]
    near = difflib.get_close_matches(config.name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    require(
        config.name in names,
        f"controller.name={config.name}: must be one of {', '.join(names)}{hint}",
    )
    cls = REGISTRY.get(config.name)
    if cls is None:
        _unread(config, ("parameter", *SHAPE, "points"), "linear")
        _unread(config, ("params", "shrinkage"), "auto")
        quantiles = (objective_config.lower_quantile, objective_config.upper_quantile)
        read = config.base_stats == "" or quantiles != (None, None)
        require(
            read,
            "controller.base_stats has no effect: closed-loop controllers and the quantile thresholds of objective read it",
        )
    elif issubclass(cls, Schedule):
        read = READS[config.name]
        _unread(
            config,
            [key for key in ("start", "end", "begin", "finish") if key not in read],
            "linear",
        )
        _unread(config, () if "points" in read else ("points",), "piecewise")
        _unread(config, ("params", "shrinkage", "base_stats"), "auto")
        _schedule(config, objective_config, objective)
    else:
        _unread(config, ("parameter", "start", "end", "begin", "finish", "points"), "linear")
        _closed_loop(config, objective_config, objective)


def _unread(config: ControllerConfig, keys: Iterable[str], reader: str) -> None:
    for key in keys:
        value = getattr(config, key)
        require(
            value == getattr(UNSET, key),
            f"controller.{key}={value} has no effect with controller.name={config.name}: it is read by {reader}, for example",
        )


def _schedule(
    config: ControllerConfig, objective_config: ObjectiveConfig, objective: Objective
) -> None:
    moved = config.parameter
    if moved not in objective.uses:
        fix = "objective.name=alpha" if moved == "alpha" else "objective.name=threshold"
        fix += ", or controller.parameter=lower" if "lower" in objective.uses else ""
        require(
            False,
            f"controller.name={config.name} moves {moved}, which objective.name={objective_config.name} does not read: use {fix}",
        )
    require(
        config.begin <= config.finish,
        f"controller.begin={config.begin} lies after controller.finish={config.finish}",
    )
    values = {"start": config.start, "end": config.end}
    if config.name == "piecewise":
        told = f"controller.points={config.points}"
        require(
            config.points != [] and all(len(point) == 2 for point in config.points),
            f"{told}: must be pairs [share of the run, value]",
        )
        shares = [point[0] for point in config.points]
        rising = shares == sorted(set(shares)) and shares[0] >= 0 and shares[-1] <= 1
        require(rising, f"{told}: the shares of the run must rise, within [0, 1]")
        values = {f"points[{number}]": point[1] for number, point in enumerate(config.points)}
    for name, value in values.items():
        in_range = 0 <= value < math.inf if moved == "alpha" else 0 <= value <= 1
        require(
            in_range,
            f"controller.{name}={value}: {moved} must be {'>= 0' if moved == 'alpha' else 'in [0, 1]'}",
        )
    _not_fixed_too(config, objective_config, (moved,))


def _closed_loop(
    config: ControllerConfig, objective_config: ObjectiveConfig, objective: Objective
) -> None:
    cls = REGISTRY[config.name]
    known = parameters(cls)
    for key, value in config.params.items():
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        require(
            key in known,
            f"controller.params.{key} is no parameter of {config.name}: {hint}there is {', '.join(known) or 'none'}",
        )
        low, high = (0.0, 1.0) if key in SHARES else (0.0, 1e6)
        require(
            low <= value <= high,
            f"controller.params.{key}={value}: must lie in [{low:g}, {high:g}]",
        )
    if problem := cls(**config.params).check():
        require(False, f"controller.params.{problem}")
    require(config.shrinkage >= 0, f"controller.shrinkage={config.shrinkage}: must not be negative")
    for moved in cls.moves:
        require(
            moved in objective.uses,
            f"controller.name={config.name} moves {moved}, which objective.name={objective_config.name} does not read: "
            f"leave objective.name out (it acts through {cls.objective})",
        )
    _not_fixed_too(config, objective_config, cls.moves)


def _not_fixed_too(
    config: ControllerConfig, objective: ObjectiveConfig, moved: Iterable[str]
) -> None:
    for name in moved:
        value = getattr(objective, name)
        unset = value == (1.0 if name == "upper" else 0.0)
        fix = (
            "set controller.start and controller.end instead"
            if config.name in READS
            else f"leave objective.{name} out"
        )
        require(
            unset, f"objective.{name}={value} is overridden by controller.name={config.name}: {fix}"
        )
        both = getattr(objective, f"{name}_quantile", None) is not None
        require(
            not both,
            f"controller.name={config.name} and objective.{name}_quantile both set {name}: choose one",
        )


def describe_controllers() -> str:
    """A Markdown table of all controllers: what they are, what they move and through which objective, parameters with defaults."""
    lines = ["| name | rule | moves | acts through | parameters |", "|---|---|---|---|---|"]
    for name, cls in REGISTRY.items():
        rule = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        if issubclass(cls, Schedule):
            moves, through, values = "`parameter`", "any that reads it", ", ".join(READS[name])
        else:
            moves, through = ", ".join(cls.moves), cls.objective
            values = ", ".join(f"{key}={value:g}" for key, value in parameters(cls).items())
        lines.append(f"| {name} | {rule} | {moves} | {through} | {values} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe_controllers())
