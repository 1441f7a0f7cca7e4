"""The modules of a transformers model that are treated apart: its decoder layers, head, embedding
and final norm."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from adaptsft.errors import ConfigError


def head_of(model: PreTrainedModel) -> nn.Linear:
    return cast(nn.Linear, model.get_output_embeddings())


def embedding_of(model: PreTrainedModel) -> nn.Embedding:
    return cast(nn.Embedding, model.get_input_embeddings())


def final_norm_of(model: PreTrainedModel) -> nn.Module | None:
    """The norm before the head, where it has one of the usual names."""
    base, names = model.base_model, ("norm", "final_layernorm", "ln_f")
    return next((getattr(base, name) for name in names if hasattr(base, name)), None)


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers, sharded or not: the modules that transformers itself never splits over
    devices."""
    names = set(model._no_split_modules or ())
    found = [module for module in model.modules() if class_name(module) in names]
    inner = {part for module in found for part in module.modules() if part is not module}
    found = [module for module in found if module not in inner]  # some list parts of layers as well
    if not found:
        raise ConfigError(
            f"{class_name(model)} does not name its decoder layers (_no_split_modules), so it "
            "cannot be sharded"
        )
    return found


def layer_configs(config: Any) -> list[Any]:
    """The configuration as each decoder layer reads it: in some models (Gemma 4) they differ."""
    if getattr(config, "is_heterogeneous", False):
        return list(config.per_layer_config)
    layers = getattr(config, "num_hidden_layers", None)
    return [config] * (layers if isinstance(layers, int) else 1)


def head_dim(config: Any) -> int:
    """Of a decoder layer's attention; 0 where its configuration does not say."""
    if size := getattr(config, "head_dim", None):
        return size
    heads = getattr(config, "num_attention_heads", None)
    return config.hidden_size // heads if isinstance(heads, int) and heads > 0 else 0


def head_sizes(config: Any) -> tuple[int, int]:
    """Of the queries and keys, and of the values, that a decoder layer's attention gets: with
    multi-head latent attention `head_dim` may be the part alone that is rotated. 0 where its
    configuration does not say."""
    size = head_dim(config)
    plain, rotated = (getattr(config, f"qk_{part}_head_dim", None) for part in ("nope", "rope"))
    query = plain + rotated if isinstance(plain, int) and isinstance(rotated, int) else size
    return query, getattr(config, "v_head_dim", None) or size


@contextmanager
def configured(model: nn.Module, key: str, value: str) -> Iterator[None]:
    """The model with another value of a key of its configuration, and of its modules' own."""
    before: dict[int, tuple[Any, str]] = {}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, key):
            before.setdefault(id(config), (config, getattr(config, key)))
    for config, _ in before.values():
        setattr(config, key, value)
    try:
        yield
    finally:
        for config, old in before.values():
            setattr(config, key, old)


def class_name(module: nn.Module) -> str:
    """Of transformers' class, whose name fully_shard prefixes."""
    return type(module).__name__.removeprefix("FSDP")
