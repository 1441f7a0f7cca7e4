"""The attention seam: every document of a pack attends to itself only.

transformers calls one function for the attention of every layer; ours receives the document
boundaries of the batch and runs flash-attn, torch's variable-length attention, or SDPA on documents
gathered by length, whichever was chosen. Without it, SDPA lets documents of a pack see each other
silently (measured: a difference of 0.28 in the logits).
"""

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adaptsft.data.documents import Documents
from adaptsft.errors import ConfigError
from adaptsft.model.context_parallel import heads_for_tokens, own_heads, tokens_for_heads
from adaptsft.model.modules import configured, head_sizes, layer_configs
from adaptsft.model.sinks import attend_with_sinks, sinks_unsupported_reason, with_sink_token

# From torch 2.12 on, varlen_attn reads one key head for several query heads; before, keys and
# values have to be repeated, which costs memory and traffic. Only the signature shows which.
VARLEN_GROUPS_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
    sinks: Tensor | None = None,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    cu, longest = documents.cu_seqlens, documents.longest.shape[0]
    if sinks is not None:
        inputs, more = (query, key, value, sinks), (scale, window, softcap or 0.0, dropout)
        return attend_with_sinks("flash", *inputs, cu, longest, *more)
    left = -1 if window is None else window - 1
    options = {
        "dropout_p": dropout,
        "softmax_scale": scale,
        "causal": True,
        "window_size": (left, 0 if window else -1),
        "softcap": softcap or 0.0,
        # torch's own kernels look there themselves
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    # torch.compile refuses an autograd function that is given one tensor twice
    again = cu.view_as(cu)
    return flash_attn_varlen_func(query, key, value, cu, again, longest, longest, **options)


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
    sinks: Tensor | None = None,
) -> Tensor:
    cu, longest = documents.cu_seqlens, documents.longest.shape[0]
    groups = query.shape[1] // key.shape[1]
    left = -1 if window is None else window - 1
    options: dict[str, Any] = {"scale": scale, "window_size": (left, 0)}
    if VARLEN_GROUPS_HEADS:
        options["enable_gqa"] = groups > 1
    else:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if sinks is not None:
        inputs = (query, key, value, sinks)
        return attend_with_sinks("varlen", *inputs, cu, longest, scale, window)
    return cast(Tensor, varlen_attn(query, key, value, cu, cu, longest, longest, **options))


@torch.compiler.disable
def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
    sinks: Tensor | None = None,
) -> Tensor:
    outputs = []
    for index in documents.buckets:
        # [documents, heads, length, head_dim]
        q, k, v = (tensor[index].transpose(1, 2) for tensor in (query, key, value))
        length = index.shape[1]
        banded = window is not None and window < length
        if softcap is None:
            mask = _causal(length, window, query.device) if banded else None
            if sinks is not None:
                q, k, v = with_sink_token(q, k, v, sinks, scale)
                mask = mask if mask is None else F.pad(mask, (1, 0, 1, 0), value=True)
            grouped = q.shape[1] != k.shape[1]
            out = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=not banded, scale=scale, enable_gqa=grouped
            )
            if sinks is not None:
                out = out[:, :, 1:, : value.shape[-1]]
        else:
            groups = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            scores = softcap * torch.tanh(q @ k.transpose(2, 3) * (scale / softcap))
            scores = scores.masked_fill(~_causal(length, window, query.device), float("-inf"))
            if sinks is not None:
                column = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
                scores = torch.cat([scores, column], -1)
            weights = scores.float().softmax(-1).to(q.dtype)[..., :length]
            out = F.dropout(weights, dropout) @ v
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[documents.inverse]


def _causal(length: int, window: int | None, device: torch.device) -> Tensor:
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < (window or length))


def of_one_size(*tensors: Tensor) -> list[Tensor]:
    """Query, key and value [tokens, heads, …] for flash-attn and varlen attention, whose heads have
    one size (Dao-AILab/flash-attention#753), a multiple of 8: in multi-head latent attention
    (DeepSeek-V3: 192 and 128) values are smaller. Zeros for the dimensions that are missing change
    neither scores nor the other outputs."""
    size = max(tensor.shape[-1] for tensor in tensors)
    size += -size % 8
    missing = [size - tensor.shape[-1] for tensor in tensors]
    return [F.pad(t, (0, m)) if m else t for t, m in zip(tensors, missing, strict=True)]


_BACKENDS = {"flash": _flash, "varlen": _varlen, "sdpa": _sdpa}
# The names under which transformers knows them; one that contains "sdpa" or "flash" would have to
# keep transformers' rules for its own.
HF_ATTENTION_NAMES = {"flash": "documents_f", "varlen": "documents_v", "sdpa": "documents_s"}
# transformers' own, for models with an attention of their own; it knows no documents
HF_ATTENTION_NAMES["eager"] = "eager"
EAGER = (
    "transformers' own attention may do, without packing: set model.attention=eager and "
    "data.packing=false"
)
_HONOURED = {"sliding_window", "softcap", "s_aux", "is_causal", "position_ids", "use_cache"}
_HONOURED |= {"output_attentions", "output_hidden_states", "return_dict", "cache_position"}


def _attention_function(backend: str):
    attend = _BACKENDS[backend]

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        documents: Documents | None = None,
        **kwargs,
    ) -> tuple[Tensor, None]:
        """query [B, heads, L, head_dim], key [B, key heads, L, head_dim], value [B, key heads, L,
        its own] -> [B, L, heads, its own]."""
        if documents is None or attention_mask is not None:
            raise ConfigError(
                f"{type(module).__name__} does not pass on where documents begin to its attention, "
                f"or gives it a mask of its own: document attention cannot honour that; {EAGER}"
            )
        given = {name for name, option in kwargs.items() if option is not None}
        unknown = given - _HONOURED
        if unknown or not getattr(module, "is_causal", True):
            what = ", ".join(sorted(unknown)) or "bidirectional attention"
            raise ConfigError(
                f"{type(module).__name__} asks its attention for {what}, which document attention "
                f"cannot honour{f'; {EAGER}' if unknown else ''}"
            )
        batch, heads, length, _ = query.shape
        if key.shape[2] != length:  # DeepSeek-V4's: one more for every so many tokens
            raise ConfigError(
                f"{type(module).__name__} gives its attention other keys than one for each token: "
                f"document attention cannot honour that; {EAGER}"
            )
        # [B * L, heads, head_dim]
        q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
        sinks = kwargs.get("s_aux")
        if documents.context is not None:
            q, k, v = heads_for_tokens(q, k, v, documents.context)
            sinks = None if sinks is None else own_heads(sinks, documents.context)
        size = v.shape[-1]
        if backend != "sdpa":
            q, k, v = of_one_size(q, k, v)
        out = attend(q, k, v, documents, scale, window, softcap, dropout, sinks)[..., :size]
        if documents.context is not None:
            out = tokens_for_heads(out, documents.context)
        return out.view(batch, length, heads, -1), None

    return attention


for _name in _BACKENDS:
    # no mask function is registered beside it: transformers then builds no mask at all, and padding
    # is a document of its own
    AttentionInterface.register(HF_ATTENTION_NAMES[_name], _attention_function(_name))


@contextmanager
def callers() -> Iterator[list[tuple[nn.Module, int | None]]]:
    """The modules that call document attention meanwhile, with the window that each gives, in the
    list that this yields. A compiled module must run eagerly to be seen."""
    seen: list[tuple[nn.Module, int | None]] = []

    def watched(attend):
        def attention(module, *args, **kwargs):
            seen.append((module, kwargs.get("sliding_window")))
            return attend(module, *args, **kwargs)

        return attention

    names = [HF_ATTENTION_NAMES[backend] for backend in _BACKENDS]
    functions = {name: ALL_ATTENTION_FUNCTIONS[name] for name in names}
    for name, attend in functions.items():
        AttentionInterface.register(name, watched(attend))
    try:
        yield seen
    finally:
        for name, attend in functions.items():
            AttentionInterface.register(name, attend)


@contextmanager
def attending(model: nn.Module, implementation: str) -> Iterator[None]:
    """The model with one of transformers' own attention implementations, such as "eager"."""
    # set_attn_implementation would leave a model as it is that has an attention of its own, whose
    # masks depend on this as well
    with configured(model, "_attn_implementation", implementation):
        yield


def set_implementation(model: nn.Module, implementation: str) -> None:
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = implementation


def needs_eager(model: nn.Module) -> bool:
    """Whether a transformers model caps its attention logits or has attention sinks.

    Outside of packs it then needs transformers' implementation "eager": SDPA knows neither,
    leaves sinks out without a word, and the cap up to transformers 5.17; 5.23 refuses it.
    """
    config: Any = model.config
    softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return bool(softcap) or has_sinks(model)


def has_sinks(model: nn.Module) -> bool:
    """Whether heads of a transformers model have attention sinks, which its config does not say."""
    return any(name.rpartition(".")[2] == "sinks" for name, _ in model.named_parameters())


def unsupported_reason(backend: str, model_config: Any) -> str:
    """Why `backend`, flash or varlen, cannot attend for such a model on any GPU; "" if it can."""
    sizes = {max(head_sizes(layer)) for layer in layer_configs(model_config)}  # `of_one_size`
    if max(sizes) > 256:
        return f"its heads have at most 256 dimensions, those of this model {max(sizes)}"
    if backend == "flash":
        return ""
    softcap = getattr(model_config, "attn_logit_softcapping", None)
    if softcap or getattr(model_config, "attention_dropout", 0.0):
        return "it has no logit softcap and no dropout, which this model asks for"
    return ""


def choose(
    wanted: str, device: torch.device, dtype: torch.dtype, model_config: Any, sinks: bool = False
) -> str:
    """The backend to use: flash, varlen or sdpa, or eager where it is asked for; for a model that
    `has_sinks`, of those that honour them. Raises ConfigError where the one asked for cannot work
    here."""
    if wanted == "eager":
        return wanted
    reasons = {"flash": "", "varlen": "", "sdpa": ""}  # why a backend does not work
    half = dtype in (torch.bfloat16, torch.float16)
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if not (ampere and half):
        needs = "it needs a GPU of compute capability 8.0 and model.compute_dtype=bf16"
        reasons |= {"flash": needs, "varlen": needs}
    if not reasons["flash"] and importlib.util.find_spec("flash_attn") is None:
        reasons["flash"] = "flash-attn is not installed (pip install flash-attn)"
    for name in ("flash", "varlen"):
        reasons[name] = reasons[name] or unsupported_reason(name, model_config)
        if sinks:
            reasons[name] = reasons[name] or sinks_unsupported_reason(name)
    for name, reason in reasons.items():
        if wanted in (name, "auto") and not reason:
            return name
    raise ConfigError(f"model.attention={wanted} does not work here: {reasons[wanted]}")
