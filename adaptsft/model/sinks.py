"""Attention sinks: every head has a logit of its own in the softmax, whose weight goes to no token.

With s the logit and z the scores of a row, the weights are exp(z - log(exp(s) + Σ exp(z))): those
without a sink, out = softmax(z) v, times sigmoid(logsumexp(z) - s).
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 8  # dimensions that heads grow by for SDPA: its kernels take multiples of 8
_FLASH = {"max_seqlen_q", "max_seqlen_k", "dropout_p", "softmax_scale", "causal", "softcap"}
_FLASH |= {"window_size_left", "window_size_right", "alibi_slopes", "cu_seqlens_q", "cu_seqlens_k"}
_VARLEN = {"cu_seq_q", "cu_seq_k", "max_q", "max_k", "is_causal", "scale", "window_size"}
# the arguments that the operators below are called with, by name
_ARGUMENTS = {
    "flash": (
        {"q", "k", "v", *_FLASH},
        {"dout", "out", "softmax_lse", "dq", "dk", "dv", "deterministic", "rng_state", *_FLASH},
    ),
    "varlen": (
        {"query", "key", "value", *_VARLEN},
        {"grad_out", "query", "key", "value", "out", "lse", "rng_state", *_VARLEN},
    ),
}


def _operators(backend: str) -> tuple[Any, Any]:
    """The kernels behind a back end's function, forward and backward."""
    if backend == "varlen":
        return torch.ops.torch_attn._varlen_attn, torch.ops.torch_attn._varlen_attn_backward
    from flash_attn import flash_attn_interface as flash  # type: ignore[import-not-found]

    return flash._wrapped_flash_attn_varlen_forward, flash._wrapped_flash_attn_varlen_backward


def sinks_unsupported_reason(backend: str) -> str:
    """Why the installed version of `backend`, flash or varlen, cannot honour sinks; "" if it
    can. They take its kernels as such, which are no public interface."""
    if backend == "varlen" and torch.version.hip:
        return "on ROCm its logsumexp has another layout, and this model has attention sinks"
    try:
        for operator, names in zip(_operators(backend), _ARGUMENTS[backend], strict=True):
            if missing := names - {
                argument.name for argument in operator.default._schema.arguments
            }:
                raise AttributeError(f"no argument {min(missing)}")
    except (ImportError, AttributeError) as error:
        return f"this model has attention sinks, and the kernels of its version differ ({error})"
    return ""


def attend_with_sinks(
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    scale: float,
    window: int | None,
    softcap: float = 0.0,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention within documents by the kernels of `backend`, flash or varlen.

    query [tokens, heads, head_dim]; key and value [tokens, key heads, head_dim], as that back end
    takes them (head_dim a multiple of 8); sinks [heads]; cu_seqlens int32 [documents + 1]
    -> [tokens, heads, head_dim]. Differentiable once, in the first four. varlen has neither softcap
    nor dropout.
    """
    left = -1 if window is None else window - 1
    more = (cu_seqlens, longest, scale, left, softcap, dropout)
    return cast(Tensor, _Attention.apply(backend, query, key, value, sinks, *more))


class _Attention(torch.autograd.Function):
    """The kernels know no sinks. Forward scales what they give. The backward one computes its
    weights, exp(z - lse), and D = Σ dout out, the mean of the gradient under them, from what it is
    given: with out and lse that include the sink, both are those of the softmax with it, and so are
    the gradients. That of s is minus its weight times D, since its value is zero."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor,
        cu: Tensor,
        longest: int,
        scale: float,
        left: int,
        softcap: float,
        dropout: float,
    ) -> Tensor:
        operator, _ = _operators(backend)
        options = _options(backend, cu, longest, scale, left, softcap, dropout)
        if backend == "flash":
            plain, lse, _, rng = operator(q=query, k=key, v=value, **options)
        else:
            # it groups heads by itself: `enable_gqa` is a check of its caller's
            plain, lse, rng = operator(query=query, key=key, value=value, **options)
        lse_of_all = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])  # [heads, tokens]
        out = plain * (lse - lse_of_all).exp().T.unsqueeze(-1).to(plain.dtype)
        ctx.save_for_backward(query, key, value, sinks, cu, out, lse_of_all, rng)
        ctx.backend, ctx.settings = backend, (longest, scale, left, softcap, dropout)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        query, key, value, sinks, cu, out, lse, rng = ctx.saved_tensors
        grad = grad.contiguous()
        _, operator = _operators(ctx.backend)
        options = _options(ctx.backend, cu, *ctx.settings)
        # by place: torch.compile takes an argument named out for a place to write to
        inputs = (grad, query, key, value, out)
        if ctx.backend == "flash":
            found = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
            operator(
                *inputs,
                softmax_lse=lse,
                dq=found[0],
                dk=found[1],
                dv=found[2],
                deterministic=torch.are_deterministic_algorithms_enabled(),
                rng_state=rng,
                **options,
            )
        else:
            found = operator(*inputs, lse=lse, rng_state=rng, **options)
        mean = (grad * out.to(lse.dtype)).sum(-1).T  # D, [heads, tokens]
        d_sinks = -((sinks.to(lse.dtype)[:, None] - lse).exp() * mean).sum(1)
        return None, *found, d_sinks.to(sinks.dtype), None, None, None, None, None, None


def _options(
    backend: str,
    cu: Tensor,
    longest: int,
    scale: float,
    left: int,
    softcap: float,
    dropout: float,
) -> dict[str, Any]:
    """What both kernels of a back end take alike."""
    if backend == "varlen":
        sizes = {"cu_seq_q": cu, "cu_seq_k": cu, "max_q": longest, "max_k": longest}
        return {**sizes, "is_causal": left < 0, "scale": scale, "window_size": [left, 0]}
    sizes = {"cu_seqlens_q": cu, "cu_seqlens_k": cu}
    sizes |= {"max_seqlen_q": longest, "max_seqlen_k": longest}
    window = {"window_size_left": left, "window_size_right": -1 if left < 0 else 0}
    return {
        **sizes,
        **window,
        "dropout_p": dropout,
        "softmax_scale": scale,
        "causal": True,
        "softcap": softcap,
        "alibi_slopes": None,
    }


def with_sink_token(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """For SDPA, which gives no logsumexp: a first token whose score is the sink's logit for every
    query of its head and whose value is zero. The causal order holds, so that any kernel does it,
    without scores in memory.

    query [N, heads, L, head_dim], key and value [N, key heads, L, …] -> the same with L + 1 tokens
    and PADDING more dimensions: two of the queries hold the logit (in bf16 what rounding leaves of
    it, too), in which only the first key is not zero. The output's first token means nothing.
    """
    wide = sinks.to(torch.promote_types(sinks.dtype, torch.float32)) / scale
    high = wide.to(query.dtype)
    low = (wide - high).detach().to(query.dtype)
    logits = F.pad(torch.stack([high, low], -1), (0, PADDING - 2))  # [heads, PADDING]
    documents, heads, length, head_dim = query.shape
    every = logits[None, :, None].expand(documents, heads, length + 1, PADDING)
    query = torch.cat([F.pad(query, (0, 0, 1, 0)), every], -1)
    key, value = (F.pad(tensor, (0, PADDING, 1, 0)) for tensor in (key, value))
    key[:, :, 0, head_dim : head_dim + 2] = 1
    return query, key, value
