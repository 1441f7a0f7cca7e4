"""What a preset of the lab says (configs/lab), and the methods that it compares."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from adaptsft.config.resolve import resolve_and_validate
from adaptsft.config.schema import Config
from adaptsft.errors import ConfigError, require
from benchmarks.lab import families, regimes
from benchmarks.lab.bases import Base

Settings = TypeVar("Settings")
MEASURED = "measured"  # as objective.base_tokens of a method, see reads_base


@dataclass
class RealRegime:
    data: dict[str, Any] = field(default_factory=dict)
    evaluate: list[str] = field(default_factory=list)
    scores: dict[str, str] = field(default_factory=dict)
    metric: str = ""


@dataclass
class Real:
    """configs/lab/real.yaml says what each key means."""

    model: str = ""
    launch: list[str] = field(default_factory=lambda: ["python"])
    regimes: dict[str, RealRegime] = field(default_factory=dict)


@dataclass
class SmolLM2:
    """configs/lab/smollm2.yaml says what each key means."""

    warm_up: dict[str, Any] = field(default_factory=dict)


@dataclass
class Lab:
    """configs/lab/full.yaml says what each key means."""

    families: list[str] = field(default_factory=list)
    regimes: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    bases: list[Any] = field(default_factory=lambda: [0])
    lrs: list[float] = field(default_factory=list)
    tune_on: list[str] = field(default_factory=list)
    items: int = 1024
    fast: bool = False
    workers: int = 2
    model: dict[str, Any] = field(default_factory=dict)
    pretrain: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    real: Real = field(default_factory=Real)
    smollm2: SmolLM2 = field(default_factory=SmolLM2)


@dataclass
class Methods:
    """configs/lab/methods.yaml: every method's keys of adaptsft.train, and the fixed ones that the
    oracle chooses from."""

    oracle: list[str] = field(default_factory=list)
    methods: dict[str, Any] = field(default_factory=dict)


def read(kind: type[Settings], path: Path, overrides: list[str]) -> Settings:
    """A settings class from a YAML file and `key=value` arguments. Raises ConfigError."""
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(kind), OmegaConf.load(path), OmegaConf.from_dotlist(overrides)
        )
        return cast(Settings, OmegaConf.to_object(merged))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{' '.join([str(path), *overrides])}: {str(error).splitlines()[0]}"
        ) from None


def read_methods(paths: Sequence[Path]) -> Methods:
    """Those of the first file, with its oracle, and of the others. Raises ConfigError."""
    methods = read(Methods, paths[0], [])
    for path in paths[1:]:
        more = read(Methods, path, [])
        require(more.oracle == [], f"{path}: oracle: it is that of {paths[0]}; leave it out")
        twice = sorted({*methods.methods} & {*more.methods})
        require(not twice, f"{path}: methods: {', '.join(twice)} is taken: choose another name")
        methods.methods |= more.methods
    return methods


def require_steps(name: str, keys: dict[str, Any]) -> None:
    for key in ("max_steps", "global_batch_size"):
        value = (keys.get("train") or {}).get(key)
        require(
            isinstance(value, int) and value > 0,
            f"{name}.train.{key} must be set, and above 0: it says how much data is generated",
        )


def reads_base(keys: dict[str, Any]) -> bool:
    """A method, by its keys, for which the lab measures the pretrained model on the run's data."""
    return keys.get("objective", {}).get("base_tokens") == MEASURED


def check(lab: Lab, methods: Methods) -> dict[str, dict[str, Any]]:
    """The trainer's keys of every method of the lab, `oracle` in its list standing for all of
    those. Raises ConfigError."""
    packaged = bool(lab.smollm2.warm_up)
    generated = not lab.real.regimes and not packaged
    needed = ["families", "bases"] * generated + ["regimes"] * (generated or packaged)
    for key in ("methods", "seeds", *needed):
        require(len(getattr(lab, key)) > 0, f"{key} must not be empty")
    for key in ("items", "workers"):
        require(getattr(lab, key) >= 1, f"{key}={getattr(lab, key)}: must be at least 1")
    if generated:
        check_generated(lab)
    if packaged:
        require_steps("smollm2.warm_up", lab.smollm2.warm_up)
        require_steps("finetune", lab.finetune)
        trainer_keys("smollm2.warm_up", lab.smollm2.warm_up)
    chosen = dict.fromkeys(
        name for entry in lab.methods for name in (methods.oracle if entry == "oracle" else [entry])
    )
    for name in [*chosen, *methods.oracle]:
        require(
            name in methods.methods,
            f"methods: {name!r} is not one of oracle, {', '.join(methods.methods)}",
        )
        require(
            re.fullmatch(r"[\w.+]+", name) is not None,
            f"methods: {name!r} becomes a file name: use letters, digits, _, + and . only",
        )
    keys = {
        name: trainer_keys(f"finetune, or method {name}", lab.finetune, methods.methods[name] or {})
        for name in chosen
    }
    for name in () if generated else keys:
        require(
            not reads_base(keys[name]),
            f"methods: {name} has the base model measured, which the lab does on its generated "
            "families alone: leave it out",
        )
    return keys


def check_generated(lab: Lab) -> None:
    """Families, regimes and what they are run with; files of regimes in lab.regimes become their
    names. Raises ConfigError."""
    lab.regimes = regimes.expanded(lab.regimes)
    found = [families.find(entry) for entry in lab.families]
    for kind, names in (
        ("families", [family.name for family in found]),
        ("regimes", [regimes.name_of(entry) for entry in lab.regimes]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, f"{kind}: two of the name {', '.join(twice)}")
    for entry in lab.regimes:
        for family in found:
            regimes.require_roles(family, entry)
    for base in lab.bases:
        Base.of(base)
    require(all(lr > 0 for lr in lab.lrs), f"lrs={lab.lrs}: must be above 0")
    names = [family.name for family in found]
    for name in lab.tune_on:
        require(name in names, f"tune_on: {name!r} is not one of families: {', '.join(names)}")
    require(
        len(lab.lrs) < 2 or len(lab.tune_on) > 0,
        f"lrs={lab.lrs}: several need tune_on (--tune-on), the families on which each method's "
        "learning rate is chosen",
    )
    require_steps("pretrain", lab.pretrain)
    require_steps("finetune", lab.finetune)


def trainer_keys(place: str, *parts: dict[str, Any]) -> dict[str, Any]:
    """The merged keys of a training, looked at by the trainer; model and data are still to come.
    `place` begins the message. Raises ConfigError."""
    keys = OmegaConf.merge(*parts)
    stand_ins = {"run_dir": "x", "model": {"path": "x"}, "data": {"path": "x"}}
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), keys, stand_ins)
        resolve_and_validate(cast(Config, OmegaConf.to_object(config)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{place}: {str(error).splitlines()[0]}") from None
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    return cast(dict[str, Any], OmegaConf.to_container(keys))
