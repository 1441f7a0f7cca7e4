"""The attention seam: every document of a pack attends to itself only.

transformers calls one function for the attention of every layer; ours receives the document boundaries of the batch and runs
flash-attn, torch's variable-length attention, or SDPA on documents gathered into rows, whichever was chosen. Without it, SDPA lets
documents of a pack see each other silently (measured: a difference of 0.28 in the logits).
"""

import importlib.util
import inspect
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from adaptsft.data.documents import Documents
from adaptsft.errors import ConfigError

# From torch 2.12 on, varlen_attn reads one key head for several query heads; before, keys and
# values have to be repeated, which costs memory and traffic. Nothing but the signature tells.
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
) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    cu, longest = documents.cu_seqlens, documents.max_length
    left = -1 if window is None else window - 1
    return flash_attn_varlen_func(
        query, key, value, cu, cu, longest, longest,
        dropout_p=dropout, softmax_scale=scale, causal=True, window_size=(left, 0 if window else -1), softcap=softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),  # torch's own kernels look there themselves
    )  # fmt: skip


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    cu, longest = documents.cu_seqlens, documents.max_length
    groups = query.shape[1] // key.shape[1]
    left = -1 if window is None else window - 1
    options: dict[str, Any] = {"scale": scale, "window_size": (left, 0)}
    if VARLEN_GROUPS_HEADS:
        options["enable_gqa"] = groups > 1
    else:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
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
) -> Tensor:
    outputs = []
    for index in documents.buckets:
        q, k, v = (
            tensor[index].transpose(1, 2) for tensor in (query, key, value)
        )  # [documents, heads, length, head_dim]
        length = index.shape[1]
        banded = window is not None and window < length
        if softcap is None:
            mask = _causal(length, window, query.device) if banded else None
            out = F.scaled_dot_product_attention(
                q,
                k,
                v,
                mask,
                dropout,
                is_causal=not banded,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        else:
            groups = q.shape[1] // k.shape[1]
            scores = softcap * torch.tanh(
                q @ k.repeat_interleave(groups, 1).transpose(2, 3) * (scale / softcap)
            )
            scores = scores.masked_fill(~_causal(length, window, query.device), float("-inf"))
            probabilities = F.dropout(scores.float().softmax(-1).to(q.dtype), dropout)
            out = probabilities @ v.repeat_interleave(groups, 1)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[documents.inverse]


def _causal(length: int, window: int | None, device: torch.device) -> Tensor:
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < (window or length))


_BACKENDS = {"flash": _flash, "varlen": _varlen, "sdpa": _sdpa}
# the names under which transformers knows them; one that contains "sdpa" or "flash" would be held to transformers' rules for its own
SEAM = {"flash": "documents_f", "varlen": "documents_v", "sdpa": "documents_s"}
_HONOURED = {
    "sliding_window",
    "softcap",
    "is_causal",
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "cache_position",
}


def _attention_function(backend: str):
    attend = _BACKENDS[backend]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
        scaling: float | None = None, dropout: float = 0.0, documents: Documents | None = None, **kwargs,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """query [B, heads, L, head_dim], key and value [B, key heads, L, head_dim] -> [B, L, heads, head_dim]."""
        assert documents is not None and attention_mask is None, (
            "document attention needs documents= and no attention mask"
        )
        unknown = {
            name for name, given in kwargs.items() if given is not None and name not in _HONOURED
        }
        if unknown or not getattr(module, "is_causal", True):
            what = ", ".join(sorted(unknown)) or "bidirectional attention"
            raise ConfigError(
                f"{type(module).__name__} asks its attention for {what}, which document attention cannot honour"
            )
        batch, heads, length, _ = query.shape
        q, k, v = (
            tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)
        )  # [B*L, heads, head_dim]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = attend(
            q, k, v, documents, scale, kwargs.get("sliding_window"), kwargs.get("softcap"), dropout
        )
        return out.view(batch, length, heads, -1), None

    return attention


for _name in _BACKENDS:
    # no mask function is registered beside it: transformers then builds no mask at all, and padding is a document of its own
    AttentionInterface.register(SEAM[_name], _attention_function(_name))


def has_softcap(model: nn.Module) -> bool:
    """Whether a transformers model caps its attention logits. Outside of packs it then needs transformers' implementation "eager": SDPA
    knows no cap, transformers 5.17 takes it all the same and leaves the cap out, 5.23 refuses it."""
    return bool(getattr(model.config.get_text_config(), "attn_logit_softcapping", None))  # type: ignore[operator, union-attr]


def unfit(backend: str, model_config: Any) -> str:
    """Why `backend`, flash or varlen, cannot attend for such a model on any GPU; empty if it can."""
    head_dim = (
        getattr(model_config, "head_dim", None)
        or model_config.hidden_size // model_config.num_attention_heads
    )
    if head_dim > 256:
        return f"its heads have at most 256 dimensions, those of this model {head_dim}"
    if backend == "varlen" and head_dim % 8:  # flash-attn pads them
        return f"the dimensions of its heads are a multiple of 8, those of this model {head_dim}"
    odd = getattr(model_config, "attn_logit_softcapping", None) or getattr(
        model_config, "attention_dropout", 0.0
    )
    return (
        "it has no logit softcap and no dropout, which this model asks for"
        if backend == "varlen" and odd
        else ""
    )


def choose(wanted: str, device: torch.device, dtype: torch.dtype, model_config) -> str:
    """The backend to use: flash, varlen or sdpa. Raises ConfigError where the one asked for cannot work here."""
    half = dtype in (torch.bfloat16, torch.float16)
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    reasons = {"flash": "", "varlen": "", "sdpa": ""}
    for name in ("flash", "varlen"):
        if not (ampere and half):
            reasons[name] = "it needs a GPU of compute capability 8.0 and model.compute_dtype=bf16"
    if importlib.util.find_spec("flash_attn") is None:
        reasons["flash"] = (
            reasons["flash"] or "flash-attn is not installed (pip install flash-attn)"
        )
    for name in ("flash", "varlen"):
        reasons[name] = reasons[name] or unfit(name, model_config)
    for name, reason in reasons.items():
        if wanted in (name, "auto") and not reason:
            return name
    raise ConfigError(f"model.attention={wanted} does not work here: {reasons[wanted]}")
