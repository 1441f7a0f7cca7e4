"""Which models are trained: those that `verified.json` holds, and what is refused by its kind.

tests/model_types has tried every type, and writes `verified.json`; docs/models.md shows it.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from adaptsft.config.schema import Config, ModelConfig
from adaptsft.errors import ConfigError, UserError, reason_of
from adaptsft.model.attention import EAGER
from adaptsft.model.modules import blocks, class_name

FILE = Path(__file__).with_name("verified.json")
LISTED = "docs/models.md lists the verified types"
# how a model may be trained, the fastest first: what a refusal advises
MODES = {
    "packed": "data.packing=true",
    "padded": "data.packing=false",
    "eager": "model.attention=eager and data.packing=false",
}


@cache
def verified() -> dict[str, Any]:
    """{"versions": of what was tried, "variants": {name: what was found}}."""
    return json.loads(FILE.read_text())


def variants_of(model_type: str) -> list[dict[str, Any]]:
    return [row for row in verified()["variants"].values() if row["model_type"] == model_type]


def choose_packing(config: Config, model_config: Any) -> str:
    """Replace data.packing=auto in the configuration: true, unless only padding trains the model as
    transformers computes it. Returns the line that says so, "" where there is nothing to say. A
    function of what is configured and of `verified.json`: ranks agree, and a resumed run too."""
    if config.data.packing != "auto":
        return ""
    tried, why = tried_of(config.model, model_config), ""
    if config.model.attention == "eager":
        why = "model.attention=eager knows no documents"
    elif "padded" in (good := exact_modes(tried)) and "packed" not in good:
        why = f"model_type={model_config.model_type}, packed: {reason(tried, 'packed')}"
    config.data.packing = not why
    return f"data.packing=auto: false, examples are padded ({why})" if why else ""


def check_verified(
    config: ModelConfig, model_config: Any, packing: bool, context_parallel: int = 1
) -> None:
    """Raises ConfigError for a model type that has not been found to train as transformers computes
    it in the way that is asked for: packed or padded, by which attention; with
    train.context_parallel as if packed, for its ranks have parts of one row. With model.unverified
    only for kinds of models that are not trained at all."""
    where = f"model.path={config.path}: model_type={model_config.model_type}"
    own_code = has_own_code(config, model_config)
    rows = [] if own_code else variants_of(model_config.model_type)
    tried = tried_of(config, model_config)
    if (rows and not tried) or getattr(model_config, "is_encoder_decoder", False):
        why = rows[0]["refused"] if rows else "an encoder-decoder"
        raise ConfigError(f"{where}: {why}; causal language models are trained. {LISTED}")
    if config.unverified:
        return
    packing = packing or context_parallel > 1
    mode = "eager" if config.attention == "eager" else "packed" if packing else "padded"
    good = exact_modes(tried)
    if mode in good:
        return
    if good and context_parallel > 1:
        raise ConfigError(
            f"{where}: train.context_parallel={context_parallel} gives ranks parts of one row of "
            "documents, as packed, which does not train it as transformers computes it "
            f"({reason(tried, mode)}); set train.context_parallel=1"
        )
    if good:
        raise ConfigError(
            f"{where}: {MODES[mode]} does not train it as transformers computes it "
            f"({reason(tried, mode)}); set {MODES[good[0]]}"
        )
    why = "it has its own code" if own_code else reason(tried, "padded") or "it was not tried"
    trial = "; model.unverified=true trains it if the comparison on the first batch holds"
    raise ConfigError(
        f"{where} is not verified to train as transformers computes it: {why}. {LISTED}"
        + ("" if tried else trial)  # what has been tried would be refused again
    )


def has_own_code(config: ModelConfig, model_config: Any) -> bool:
    return config.trust_remote_code and hasattr(model_config, "auto_map")


def tried_of(config: ModelConfig, model_config: Any) -> list[dict[str, Any]]:
    """The variants of its type that are trained at all; none for code of its own."""
    rows = [] if has_own_code(config, model_config) else variants_of(model_config.model_type)
    return [row for row in rows if "refused" not in row]


def exact_modes(tried: list[dict[str, Any]]) -> list[str]:
    return [name for name in MODES if tried and all(is_exact(row, name) for row in tried)]


def is_exact(row: dict[str, Any], mode: str) -> bool:
    """Whether a variant trains as transformers computes it; its entry is then a relative error, and
    the reason why not otherwise."""
    return isinstance(row.get(mode), float)


def reason(rows: list[dict[str, Any]], mode: str) -> str:
    return next((row[mode] for row in rows if isinstance(row.get(mode), str)), "")


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raises ConfigError for kinds of models that are not trained."""
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise ConfigError(f"{class_name(model)} has no linear head over its vocabulary; {LISTED}")
    layers = Counter(p for layer in blocks(model) for p in layer.parameters())
    if max(layers.values()) > 1:
        raise ConfigError(
            f"{class_name(model)} has decoder layers that share parameters, which cannot be "
            f"sharded; {LISTED}"
        )


@contextmanager
def named_errors(model: Any, doing: str = "its forward") -> Iterator[None]:
    """Any error of a model's own code, such as an argument that it does not know, as a
    ConfigError."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = reason_of(error).splitlines()[0]
        raise ConfigError(
            f"{model.name_or_path} ({class_name(model)}): model_type={model.config.model_type} "
            f"cannot be trained: {doing} fails: {reason}"
            + ("" if model.config._attn_implementation == "eager" else f"; {EAGER}")
        ) from error
