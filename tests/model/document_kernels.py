"""CPU kernels for the operators behind varlen and flash attention, from their equations, so that
the layers which a GPU compiles are traced, compiled and run where there is none.

varlen is torch's own operator. `flash_attn` stands for the package: an autograd function around two
operators, the second of which writes its results into its arguments, as in flash-attn 2.8, whose
names of arguments they have.
"""

import functools
import sys
import types
from collections import Counter
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from adaptsft.model import attention, build

calls: Counter[str] = Counter()  # of the kernels


def _scores(query: Tensor, key: Tensor, cu: Tensor, longest: int, scale: float, left: int):
    """fp32 [heads, L, L]; -inf where a token does not see another."""
    assert longest >= int(cu.diff().max()) and int(cu[-1]) == len(query)
    place = torch.arange(len(query))
    document = torch.bucketize(place, cu.long(), right=True)
    distance = place[:, None] - place
    seen = (document[:, None] == document) & (distance >= 0)
    if left >= 0:
        seen &= distance <= left
    scores = scale * torch.einsum("qhd,khd->hqk", query, _repeated(key, query)).float()
    return scores.masked_fill(~seen, -torch.inf)


def _repeated(key: Tensor, query: Tensor) -> Tensor:
    return key.repeat_interleave(query.shape[1] // key.shape[1], 1)


def forward(query, key, value, cu, longest, scale, left):
    calls["forward"] += 1
    assert query.shape[-1] == value.shape[-1], "as the kernels on a GPU"
    scores = _scores(query, key, cu, longest, scale, left)
    weights = scores.softmax(-1).to(value.dtype)
    out = torch.einsum("hqk,khd->qhd", weights, _repeated(value, query))
    return out.contiguous(), scores.logsumexp(-1)


def backward(grad, query, key, value, out, lse, cu, longest, scale, left):
    calls["backward"] += 1
    weights = (_scores(query, key, cu, longest, scale, left) - lse[..., None]).exp()
    d_weights = torch.einsum("qhd,khd->hqk", grad, _repeated(value, query)).float()
    mean = (grad * out).float().sum(-1).T[..., None]
    d_scores = (scale * weights * (d_weights - mean)).to(query.dtype)
    d_query = torch.einsum("hqk,khd->qhd", d_scores, _repeated(key, query))
    d_key = torch.einsum("hqk,qhd->khd", d_scores, query)
    d_value = torch.einsum("hqk,qhd->khd", weights.to(value.dtype), grad)
    heads = (key.shape[1], -1)
    summed = (gradient.unflatten(1, heads).sum(2) for gradient in (d_key, d_value))
    return d_query.contiguous(), *summed


@varlen._varlen_attn.register_kernel("cpu")
def _(query, key, value, cu, _k, longest, _m, _causal=False, scale=None, window=None, *_rest):
    out, lse = forward(query, key, value, cu, longest, scale, window[0])
    return out, lse, torch.zeros(2, dtype=torch.uint64)


@varlen._varlen_attn_backward.register_kernel("cpu")
def _(grad, q, k, v, out, lse, cu, _k, longest, _m, _causal, _rng, scale=None, window=None):
    return backward(grad, q, k, v, out, lse, cu, longest, scale, window[0])


# with flash-attn's argument names, of which some are not read
@torch.library.custom_op("flash_attn_tests::_flash_attn_varlen_forward", mutates_args=())
def flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert causal and not dropout_p and not softcap and q.shape[-1] % 8 == 0
    out, lse = forward(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale, window_size_left)
    return out, lse, q.new_empty(0), torch.zeros(2, dtype=torch.int64)


@flash_forward.register_fake
def _(q, k, v, cu_seqlens_q, *_rest, **_named):
    lse = q.new_empty(q.shape[1::-1], dtype=torch.float32)
    return torch.empty_like(q), lse, q.new_empty(0), q.new_empty(2, dtype=torch.int64)


@torch.library.custom_op(
    "flash_attn_tests::_flash_attn_varlen_backward", mutates_args=("dq", "dk", "dv")
)
def flash_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    size = (cu_seqlens_q, max_seqlen_q, softmax_scale, window_size_left)
    found = backward(dout, q, k, v, out, softmax_lse, *size)
    for tensor, gradient in zip((dq, dk, dv), found, strict=True):
        tensor.copy_(gradient)
    return torch.zeros_like(softmax_lse)


@flash_backward.register_fake
def _(dout, q, k, v, out, softmax_lse, *_rest, **_named):
    return torch.empty_like(softmax_lse)


class Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, cu_q, cu_k, longest, scale, left):
        size = (cu_q, cu_k, longest, longest, 0.0, scale, True, left)
        out, lse, _, _ = flash_forward(query, key, value, *size)
        ctx.save_for_backward(query, key, value, out, lse, cu_q, cu_k)
        ctx.longest, ctx.scale, ctx.left = longest, scale, left
        return out

    @staticmethod
    def backward(ctx, grad):
        query, key, value, out, lse, cu, again = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(tensor) for tensor in (query, key, value))
        size = (cu, again, ctx.longest, ctx.longest, 0.0, ctx.scale, True, ctx.left, 0, 0.0)
        flash_backward(grad, query, key, value, out, lse, dq, dk, dv, *size, None, False)
        return dq, dk, dv, None, None, None, None, None


def flash_attn_varlen_func(q, k, v, cu_q, cu_k, longest, _longest, **options):
    left, _ = options["window_size"]
    return Flash.apply(q, k, v, cu_q, cu_k, longest, options["softmax_scale"], left)


def install_flash(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package flash_attn of these kernels; its module of operators."""
    package = types.ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", None)
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    interface: Any = types.ModuleType("flash_attn.flash_attn_interface")
    operators = torch.ops.flash_attn_tests
    interface._wrapped_flash_attn_varlen_forward = operators._flash_attn_varlen_forward
    interface._wrapped_flash_attn_varlen_backward = operators._flash_attn_varlen_backward
    package.flash_attn_interface = interface  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", interface)
    return interface


def use(backend: str, monkeypatch: pytest.MonkeyPatch, compiler: str = "inductor") -> None:
    """Attention runs by `backend`, flash, varlen or eager, on the CPU; layers are compiled by
    `compiler`, a back end of torch.compile."""
    install_flash(monkeypatch)
    monkeypatch.setattr(attention, "choose", lambda *_, **_named: backend)
    make = build.compiler

    def compiler_of(*settings):
        compile = make(*settings)
        return compile and functools.partial(compile, backend=compiler)

    monkeypatch.setattr(build, "compiler", compiler_of)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    calls.clear()


def graphs() -> int:
    """That have been traced; a graph break fails the test."""
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"], counters["graph_break"]
    return counters["stats"]["unique_graphs"]
