"""From a YAML file and `key=value` arguments to a typed configuration, merged by OmegaConf in
struct mode.

A file may build on others: `extends: [base.yaml, …]`, relative to it, merged in order before its
own keys. A misspelt key and a value of the wrong type are refused here; what a value may be, and
which go together, adaptsft.config.resolve checks.
"""

import dataclasses
import functools
import json
import math
import os
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adaptsft.config.schema import Config, all_keys, get, type_name
from adaptsft.errors import ConfigError, did_you_mean, require, warn


def parse_arguments(arguments: list[str]) -> Config:
    """The configuration from `[CONFIG.yaml] key=value …` (later wins). Raises ConfigError."""
    merged = OmegaConf.structured(Config)
    for origin, values in (part for argument in arguments for part in _parse(argument)):
        try:
            for old, new in rename_keys(values):
                warn(f"{origin}: {old} is called {new} now")
            _refuse_booleans(values)
            # a mapping replaces the one before it; its keys, one by one, add to it
            for name in _keys_of("dict"):
                if OmegaConf.select(values, name) is not None and origin.startswith(f"{name}="):
                    OmegaConf.update(merged, name, {}, merge=False)
            merged.merge_with(values)
        except (OmegaConfBaseException, TypeError) as error:
            raise ConfigError(f"{origin}: {_explain(error)}") from None
    try:
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # an interpolation ${…} that leads nowhere
        raise ConfigError(_explain(error)) from None
    return config


def group_of(name: str, values: Mapping[str, Any]) -> Any:
    """The group `name` of the configuration with these values. Raises ConfigError."""
    try:
        merged = OmegaConf.structured(Config)
        merged.merge_with({name: dict(values)})
        config = typing.cast(Config, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, TypeError) as error:
        raise ConfigError(_explain(error)) from None
    check_choices(config)
    return getattr(config, name)


def check_choices(config: Config) -> None:
    """Raise ConfigError for a number that is not finite, and for a value that is none of the
    choices of its key."""
    for name, declared, _ in all_keys():
        choices, value = declared.metadata["choices"], get(config, name)
        require(
            not isinstance(value, float) or math.isfinite(value),
            f"{name}={value}: must be a finite number",
        )
        for chosen in value if isinstance(value, list) else [value]:
            if isinstance(chosen, bool):
                chosen = str(chosen).lower()
            require(
                not choices or chosen in choices,
                f"{name}={chosen}: must be one of {', '.join(choices)}"
                + did_you_mean(str(chosen), choices),
            )


def _parse(argument: str) -> list[tuple[str, Any]]:
    """(origin, values) of an argument: a `key=value`, or a file after the files that it extends."""
    if argument.startswith("-"):
        raise ConfigError(
            f"{argument}: not an option; settings are written key=value, and --help lists the keys"
        )
    if "=" in argument:
        return [(argument, _parse_value(argument))]
    if not Path(argument).is_file():
        raise ConfigError(
            f"{argument}: no such configuration file (arguments are a YAML file or key=value)"
        )
    return _parse_file(Path(argument), ())


def _parse_file(path: Path, extending: tuple[Path, ...]) -> list[tuple[str, Any]]:
    if path in extending:
        raise ConfigError(f"{path}: extends itself, by way of {', '.join(map(str, extending))}")
    try:
        values: Any = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not OmegaConf.is_dict(values):
        raise ConfigError(f"{path}: holds a list; a configuration is a mapping of keys to values")
    extends = values.pop("extends", None) or []
    parts: list[tuple[str, Any]] = []
    for name in [extends] if isinstance(extends, str) else extends:
        parent = Path(os.path.normpath(path.parent / str(name)))
        if not parent.is_file():
            raise ConfigError(
                f"{path}: extends: no such file: {parent} (names are relative to the file that "
                "extends)"
            )
        parts += _parse_file(parent, (*extending, path))
    return [*parts, (str(path), values)]


def _parse_value(argument: str) -> Any:
    name, text = argument.split("=", 1)
    if name in _keys_of("str"):
        # text is taken as it is, whatever YAML would make of {prompt}, 007, # or nothing at all;
        # in double quotes \n is a line break
        try:
            value = yaml.safe_load(text) if text[:1] in ("'", '"') else text
            return OmegaConf.from_dotlist([f"{name}={json.dumps(value)}"])
        except yaml.YAMLError:
            raise ConfigError(f"{argument}: the quotes do not close") from None
    groups = {declared.rpartition(".")[0] for declared, _, _ in all_keys() if "." in declared}
    try:
        values = OmegaConf.from_dotlist([argument])
    except (yaml.YAMLError, OmegaConfBaseException):
        raise ConfigError(
            f"{argument}: the value is not valid YAML; put it in quotes: '{name}=\"{text}\"'"
        ) from None
    if name in groups and not OmegaConf.is_dict(OmegaConf.select(values, name)):
        first = next(declared for declared, _, _ in all_keys() if declared.startswith(f"{name}."))
        raise ConfigError(f"{argument}: {name} is a group of keys; did you mean {first}={text}?")
    value = OmegaConf.select(values, name)
    if name in _keys_of("list") and not OmegaConf.is_list(value):
        raise ConfigError(f"{argument}: must be a list, such as {name}='[a, b]'")
    if name in _keys_of("dict") and not OmegaConf.is_dict(value):
        raise ConfigError(f"{argument}: must be a mapping, such as {name}='{{a: b}}'")
    return values


def _refuse_booleans(values: Any, name: str = "") -> None:
    """YAML reads yes, no, on and off as true and false; where text is meant that would become the
    name 'True'."""
    meant = {declared.split(".")[-1] for declared in _keys_of("bool")}
    children: Any = ()
    if OmegaConf.is_dict(values):
        children = values.items()
    elif OmegaConf.is_list(values):
        children = enumerate(values)
    for key, value in children:
        if isinstance(value, bool) and key not in meant:
            raise ConfigError(f"{name}{key}: YAML reads this value as {value}; put it in quotes")
        _refuse_booleans(value, f"{name}{key}.")


@functools.cache
def _keys_of(kind: str) -> set[str]:
    """Names of the keys declared as str (also `str | None`), bool, list or dict."""
    return {name for name, declared, _ in all_keys() if re.match(rf"{kind}\b", type_name(declared))}


# keys of the release before: what each is called now, and the new value for each old one
REDUCTION, DTYPE = {True: "micro_batch", False: "step"}, {True: "bf16", False: "fp32"}
RENAMED: dict[str, tuple[str, dict[Any, Any]]] = {
    "strict_reproduction.summed_micro_batches": ("train.loss_reduction", REDUCTION),
    "strict_reproduction.bf16_masters": ("model.param_dtype", DTYPE),
    "log.tensorboard": ("log.trackers", {True: ["tensorboard"], False: []}),
}


# keys that are gone, and the value that meant nothing; run folders have it in their config.yaml
REMOVED = {"controller.base_logp": ""}


def rename_keys(values: Any) -> list[tuple[str, str]]:
    """Replace the keys of the release before in `values`; returns (old=…, new=…) of each."""
    renamed = []
    for old, (new, meaning) in RENAMED.items():
        if (value := _pop(values, old)) is None:
            continue
        if value not in meaning:
            raise ConfigError(f"{old}={value}: must be true or false; use {new}")
        if OmegaConf.select(values, new) not in (None, meaning[value]):
            raise ConfigError(
                f"{old} and {new}, its new name, contradict each other: leave {old} out"
            )
        OmegaConf.update(values, new, meaning[value])
        now = str(meaning[value]).replace("'", "")
        renamed.append((f"{old}={str(value).lower()}", f"{new}={now}"))
    for old, unset in REMOVED.items():
        if (value := _pop(values, old)) not in (None, unset):
            raise ConfigError(f"{old}={value}: this key is gone, with the controller that read it")
    return renamed


def _pop(values: Any, key: str) -> Any:
    """Take a key out of a nested configuration; None where it is not there."""
    group, name = key.split(".")
    if not OmegaConf.is_dict(values.get(group)) or name not in values[group]:
        return None
    value = values[group].pop(name)
    if not values[group]:
        del values[group]
    return value


# what other trainers call it
ALIASES = {
    "learning_rate": "train.lr",
    "batch_size": "train.global_batch_size",
    "num_epochs": "train.epochs",
    "output_dir": "run_dir",
    "r": "model.lora.rank",
    "lora_r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_target_modules": "model.lora.target_modules",
}


# and what it does not say here in other words
UNSUPPORTED = {
    "modules_to_save": "adapters are trained alone, and no other weights are trained beside them: "
    "leave it out",
}


def _explain(error: Exception) -> str:
    """One line for OmegaConf's error: the full key, what is wrong with it, and the nearest key that
    exists."""
    full_key = getattr(error, "full_key", None) or ""
    last = full_key.split(".")[-1]
    if alias := ALIASES.get(last):
        return f"unknown key {full_key}; did you mean {alias}?"
    if reason := UNSUPPORTED.get(last):
        return f"unknown key {full_key}: {reason}"
    if "not in" in str(error):
        names = [name for name, _, _ in all_keys()]
        same_end = [name for name in names if name.split(".")[-1] == last]
        hint = (
            did_you_mean(full_key, names, cutoff=0.75)
            or did_you_mean(full_key, same_end, cutoff=0.0)
            or did_you_mean(full_key, names, cutoff=0.5)
        )
        return f"unknown key {full_key}{hint or '; --help lists the keys'}"
    return f"key {full_key}: {str(error).splitlines()[0]}"


def differences(old: Config, new: Config) -> list[str]:
    """`key: old -> new` for every key that differs and that could change what is learned."""
    changed, pinned = [], _pinned(old)
    for name, declared, _ in all_keys():
        free = declared.metadata["changeable"] and name not in pinned
        if not free and get(old, name) != get(new, name):
            changed.append(f"{name}: {get(old, name)} -> {get(new, name)}")
    return changed


def _pinned(config: Config) -> set[str]:
    """Keys that may usually change when a run is resumed, and that settings of this run make part
    of what is learned."""
    keys: set[str] = set()
    if config.train.loss_reduction == "micro_batch":
        keys |= {"train.micro_batch_size"}
    if config.model.param_dtype == "bf16":  # the sum over micro-batches is rounded after each
        keys |= {"train.reduce_every_micro_batch"}
    return keys


def save_config(config: Config, path: Path) -> None:
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))))


def read_config(path: Path) -> Config:
    """A configuration that `save_config` wrote, of this release or the one before. Raises
    ConfigError where the file is damaged or older."""
    try:
        values = OmegaConf.load(path)
        rename_keys(values)
        merged = OmegaConf.structured(Config)
        merged.merge_with(values)
        return typing.cast(Config, OmegaConf.to_object(merged))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: not a configuration of this version: {reason}") from None
