"""Which tensor of a checkpoint's files is which of the model.

Many checkpoints were written under other names than those that the model has today, or with other
tensors; transformers renames and computes while it loads, by rules of its own, which are applied
here to names alone.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from adaptsft.errors import ConfigError, reason_of
from adaptsft.model.conversion import Conversion, Source, Sources
from adaptsft.model.language import multimodal_class
from adaptsft.model.modules import embedding_of, head_of

# Buffers of old files, which transformers computes anew: frequencies, positions, causal masks
IGNORED = (
    r"rotary_emb\.inv_freq$",
    r"(^|\.)position_ids$",
    r"\.(attn|attention|self_attn|self_attention)\.masked_bias$",
)


class Names(NamedTuple):
    """Names in the files of the tensors of a model."""

    stored: dict[str, str]  # name in the model -> name in the files
    exported: dict[str, str]  # name in the model -> name that an export writes
    computed: list[Conversion]  # what is neither renamed nor missing
    copied: list[str]  # in the files: not in the model; an export repeats them as they are
    twins: tuple[str, str] | None  # in the files: embedding and head, where the model ties them
    whole: dict[str, str]  # name in the model -> name in the whole model that it is a part of


def names_of(model: PreTrainedModel, config: Any, folder: Path, files: Iterable[str]) -> Names:
    """Find the tensors of a causal language model, on meta and not sharded, among those that the
    files hold. `config` is that of the whole model.

    Raises ConfigError where a tensor is missing, and where the files hold others that neither the
    model nor transformers knows.
    """
    whole_class, whole, translation = multimodal_class(config), model, None
    if whole_class is not None:
        whole = _on_meta(whole_class, config)
        translation = _language_names(whole, model)
    matched = _match(whole, files)
    own = {name: name for name in whole.state_dict()}
    if translation is not None:
        own = {other: name for name, other in translation.items()}
    found = {own[name]: old for name, old in matched.found.items() if name in own}
    computed = _computed(whole, matched, own)

    wanted, twins = _wanted(model), _pair_twins(model, found)
    read = {name: found[name] for name in wanted if name in found}
    made = {name for conversion in computed for name in conversion.targets.values()}
    taken = {old for conversion in computed for old in conversion.shapes}
    unread = sorted(set(files) - set(read.values()) - set(twins or ()) - taken)
    missing = sorted(set(wanted) - read.keys() - made)
    unknown = [] if whole_class is not None else _not_ignored(model, unread)
    if missing or unknown:
        _refuse(model, folder, missing, unknown or sorted(set(unread) - {*matched.found.values()}))
    if translation is not None:
        return Names(read, read, computed, unread, twins, translation)
    exported = {name: name if name in matched.prefixed else old for name, old in read.items()}
    return Names(read, exported, computed, [], twins, {})


class _Matched(NamedTuple):
    found: dict[str, str]  # name in the model -> name in the files
    prefixed: set[str]  # names in the model that the files give without, or with, the base's prefix
    # first name in the model of what is computed -> by what, and from what
    converted: dict[str, tuple[WeightConverter, Sources]]


def _match(model: PreTrainedModel, files: Iterable[str]) -> _Matched:
    """What transformers' from_pretrained would make of these names."""
    rules: Any = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    matched = _Matched({}, set(), {})
    for old in sorted(files, key=dot_natural_key):  # some rules depend on what came before
        renamed, _ = rename_source_key(old, renamings, [])
        name, pattern = rename_source_key(old, renamings, converters, prefix, state)
        if name not in state and old in state:
            renamed, name, pattern = old, old, None
        if name not in state:
            continue
        if pattern is not None:
            rule = next(rule for rule in reversed(converters) if pattern in rule.source_patterns)
            _, sources = matched.converted.setdefault(name, (rule, {}))
            full, there = _as_in_the_model(renamed, name, prefix), sources.setdefault(pattern, {})
            if full in there:
                raise ConfigError(
                    f"the files hold {full} twice, as {there[full].stored} and as {old}: remove one"
                )
            there[full] = Source(old, old if full == renamed else full)
            continue
        if name in matched.found:
            raise ConfigError(
                f"the files hold {name} twice, as {matched.found[name]} and as {old}: remove one"
            )
        matched.found[name] = old
        if renamed != name:
            matched.prefixed.add(name)
    return matched


def _as_in_the_model(renamed: str, name: str, prefix: str) -> str:
    """A name of the files with the prefix of the base model if, and only if, the one that is
    computed from it has it."""
    bare = renamed.removeprefix(f"{prefix}.")
    return f"{prefix}.{bare}" if prefix and name.startswith(f"{prefix}.") else bare


def _computed(whole: PreTrainedModel, matched: _Matched, own: dict[str, str]) -> list[Conversion]:
    """The conversions that give tensors of the model that is trained, under its own names (`own`,
    by their names in the whole)."""
    computed, state = [], whole.state_dict()
    for first, (converter, sources) in matched.converted.items():
        if first in own:
            conversion = Conversion.of(converter, whole, state, first, sources)
            if twice := sorted({*conversion.targets.values()} & matched.found.keys()):
                raise ConfigError(
                    f"the files hold {twice[0]} twice: as {matched.found[twice[0]]}, and as what "
                    f"it is computed from, such as {next(iter(conversion.shapes))}: remove one"
                )
            targets = {pattern: own[name] for pattern, name in conversion.targets.items()}
            computed.append(dataclasses.replace(conversion, targets=targets))
    return computed


def _wanted(model: PreTrainedModel) -> list[str]:
    """Parameters, tied ones once, and persistent buffers; in the same order on all ranks."""
    parameters = {name for name, _ in model.named_parameters()}
    buffers = {name for name, _ in model.named_buffers()}
    return [name for name in model.state_dict() if name in parameters | buffers]


def _pair_twins(model: PreTrainedModel, found: dict[str, str]) -> tuple[str, str] | None:
    """Where the head is the embedding, leave one name of the two in `found`: that of the parameter.
    Their names in the files, where these hold both."""
    names = [_weight_name(model, module) for module in (embedding_of(model), head_of(model))]
    if head_of(model).weight is not embedding_of(model).weight:
        return None
    kept, other = names if names[0] in dict(model.named_parameters()) else names[::-1]
    if kept in found and other in found:
        return found[kept], found.pop(other)
    if other in found:  # transformers ties either way round
        found[kept] = found.pop(other)
    return None


def _not_ignored(model: PreTrainedModel, names: list[str]) -> list[str]:
    patterns = [*IGNORED, *(model._keys_to_ignore_on_load_unexpected or ())]
    ignored = re.compile("|".join(patterns))
    return [name for name in names if not ignored.search(name)]


def _weight_name(model: nn.Module, module: nn.Module) -> str:
    return next(f"{name}.weight" for name, found in model.named_modules() if found is module)


def _on_meta(whole_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            return whole_class._from_config(config)
    except Exception as error:  # such as a package that its vision part needs
        raise ConfigError(
            f"model.path={config._name_or_path}: {whole_class.__name__} cannot be built: "
            f"{reason_of(error)}"
        ) from None


def _language_names(whole: PreTrainedModel, model: PreTrainedModel) -> dict[str, str]:
    """Name of each tensor in the language model -> its name in the whole model."""
    decoder, state = type(model.base_model), whole.state_dict()
    places = [name for name, module in whole.named_modules() if type(module) is decoder]
    own_head, head = head_of(model), whole.get_output_embeddings()
    parts = {}
    if len(places) == 1 and isinstance(head, nn.Module):
        parts[f"{model.base_model_prefix}."] = f"{places[0]}."
        own = _weight_name(model, own_head).removesuffix("weight")
        parts[own] = _weight_name(whole, head).removesuffix("weight")
    translation = {
        name: other + name.removeprefix(own)
        for name in model.state_dict()
        for own, other in parts.items()
        if name.startswith(own)
    }
    complete = translation.keys() == model.state_dict().keys()
    if not complete or not state.keys() >= set(translation.values()):
        raise ConfigError(
            f"{type(whole).__name__}: where its language part ({decoder.__name__}) begins and ends "
            "is not known here, so it cannot be trained"
        )
    return translation


def _refuse(model: PreTrainedModel, folder: Path, missing: list[str], unknown: list[str]) -> None:
    head = _weight_name(model, head_of(model))
    if missing == [head] and not unknown:
        raise ConfigError(
            f"{folder}: the files hold no {head}, and config.json does not tie it to the "
            "embeddings: transformers would start from a random head. If the model shares them, "
            "set tie_word_embeddings=true in config.json; if not, the files are incomplete"
        )
    near = difflib.get_close_matches(missing[0], unknown, n=1) if missing else []
    parts = [f"{len(missing)} tensors missing (such as {missing[0]})"] if missing else []
    if unknown:
        parts.append(f"{len(unknown)} not used (such as {(near or unknown)[0]})")
    raise ConfigError(
        f"{folder}: the files do not fit {type(model).__name__}: {', '.join(parts)}, after the "
        "renames that transformers knows: do config.json and the weights belong together?"
    )
