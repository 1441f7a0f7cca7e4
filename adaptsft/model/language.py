"""The causal language model of a configuration: the model itself, or the language part of one that
also reads images or sound."""

import copy
import inspect
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

from adaptsft.errors import ConfigError, reason_of, require_installed
from adaptsft.model.attention import EAGER

# Language parts for which transformers has no causal language model of their own: a linear head
# without bias on the last hidden state, which the tests compare with the whole model.
PLAIN_HEADS = {
    "glm4v_text",
    "glm_ocr_text",
    "hunyuan_vl_text",
    "qwen2_5_vl_text",
    "qwen2_vl_text",
    "qwen3_vl_moe_text",
    "qwen3_vl_text",
}

# Keys of a configuration by which a forward keeps what training has no use for
KEPT = ("use_cache", "output_attentions", "output_hidden_states", "output_router_logits")
# Keys of a language model's configuration that change its logits
LOGIT_SCALES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def multimodal_class(config: Any) -> type[PreTrainedModel] | None:
    """The class of the whole model where the language model is only a part of it, else None."""
    known = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    if not known or config.get_text_config() is config:
        return None
    return cast(type[PreTrainedModel], MODEL_FOR_MULTIMODAL_LM_MAPPING[type(config)])


def causal_lm(
    config: Any, attn_implementation: str, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model with random weights, on the current device, for training: with a
    copy of the configuration that keeps neither keys and values nor what layers return. Of a
    multimodal model it is the language part alone, with that part of the configuration.

    Raises ConfigError where there is none.
    """
    whole = multimodal_class(config)
    settings: Any = copy.deepcopy(config.get_text_config() if whole else config)
    for key in KEPT:
        if getattr(settings, key, False):
            setattr(settings, key, False)
    options: dict[str, Any] = {"attn_implementation": attn_implementation, "dtype": dtype}
    if whole:
        own_head = bool(whole._tied_weights_keys)  # else it holds a whole causal language model
        if own_head:
            _check_scales(config, whole)
        tying = config if own_head else settings
        settings.tie_word_embeddings = bool(getattr(tying, "tie_word_embeddings", False))
        settings._name_or_path = config._name_or_path
        if type(settings) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            return _with_plain_head(config, settings, options)
    try:
        options["trust_remote_code"] = trust_remote_code
        model = cast(PreTrainedModel, AutoModelForCausalLM.from_config(settings, **options))
    except Exception as error:  # also what the code of a model raises that comes with its own
        reason = reason_of(error).splitlines()[0]
        if error.args == (attn_implementation,):
            reason = f"its attention is its own, and cannot be given another; {EAGER}"
        raise ConfigError(
            f"model.path={config._name_or_path}: transformers makes no causal language model of "
            f"model_type={config.model_type}: {reason}"
        ) from None
    decoder: Any = model.base_model
    # whether a batch without a mask has padding, which ours may have: a wait for the device
    decoder.warn_if_padding_and_no_attention_mask = _no_warning
    return model


def _no_warning(input_ids: Tensor, attention_mask: Tensor | None) -> None: ...


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds an adapter in PEFT's layout, not a model."""
    return (Path(path) / "adapter_config.json").is_file()


def load_whole(path: str | Path, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """A model of a folder or of the hub that answers texts, not sharded: of a multimodal one the
    whole, where transformers has no other class, and of an adapter's folder its base with it.
    Raises what `from_pretrained` raises, and ConfigError for an adapter without its base."""
    if is_adapter(path):
        return _load_adapted(path, dtype, trust_remote_code)
    try:
        # False is said: without it transformers asks on the terminal
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=trust_remote_code
        )
    except ValueError:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or multimodal_class(config) is None:
            raise
        return AutoModelForMultimodalLM.from_pretrained(path, dtype=dtype)


def _load_adapted(path: str | Path, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """By PEFT itself: transformers 5.24 leaves DoRA's magnitudes as they were before training."""
    require_installed("peft", "lora", f"{path} holds an adapter, which")
    from peft import PeftConfig, PeftModel

    settings = PeftConfig.from_pretrained(str(path))
    base = str(settings.base_model_name_or_path)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    options["revision"] = settings.revision
    try:
        config = AutoConfig.from_pretrained(base, **options)
        # adapters have the names of the whole, also where its language part has a class of its own
        loader = AutoModelForMultimodalLM if multimodal_class(config) else AutoModelForCausalLM
        model = loader.from_pretrained(base, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} holds an adapter of {base} (base_model_name_or_path in adapter_config.json), "
            f"which cannot be loaded: {reason_of(error).splitlines()[0]}"
        ) from None
    return PeftModel.from_pretrained(model, str(path)).get_base_model()


def _check_scales(config: Any, whole: type[PreTrainedModel]) -> None:
    """Raise ConfigError where the language model alone would scale or cap its logits and the whole
    model does not: trained so, the whole would be another model. Only its code tells."""
    code = inspect.getsource(inspect.unwrap(whole.forward))
    for key in LOGIT_SCALES:
        value = getattr(config.get_text_config(), key, None)
        if value not in (None, 1.0) and key not in code:
            raise ConfigError(
                f"model.path={config._name_or_path}: {key}={value} of its language part is not "
                f"applied by transformers' {whole.__name__}: its loss would not be that of the "
                "whole model, so it cannot be trained"
            )


def _with_plain_head(config: Any, settings: Any, options: dict[str, Any]) -> PreTrainedModel:
    if settings.model_type not in PLAIN_HEADS or type(settings) not in MODEL_MAPPING:
        raise ConfigError(
            f"model.path={config._name_or_path}: the language part ({settings.model_type}) of "
            f"model_type={config.model_type} is not a causal language model that is known here, so "
            "it cannot be trained; name a checkpoint of its language model alone, if there is one"
        )
    decoder: Any = MODEL_MAPPING[type(settings)]
    family: Any = next(c for c in decoder.__mro__[1:] if issubclass(c, PreTrainedModel))

    class WithPlainHead(family):
        config_class = type(settings)
        base_model_prefix = "model"
        _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = decoder(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self.post_init()

        @classmethod
        def _can_set_experts_implementation(cls) -> bool:
            # transformers reads the source around a class, here this file: experts one by one
            return bool(decoder._can_set_experts_implementation())

        def forward(
            self, input_ids: Tensor, logits_to_keep: int | Tensor = 0, **inputs: Any
        ) -> CausalLMOutputWithPast:
            hidden = self.model(input_ids=input_ids, **inputs).last_hidden_state
            last = isinstance(logits_to_keep, int)
            kept = slice(-logits_to_keep, None) if last else logits_to_keep
            return CausalLMOutputWithPast(logits=self.lm_head(hidden[:, kept]))

    WithPlainHead.__name__ = f"{decoder.__name__.removesuffix('Model')}ForCausalLM"
    return cast(PreTrainedModel, WithPlainHead._from_config(settings, **options))
