"""Attention sinks: a logit per head takes part in the softmax, and its weight goes nowhere."""

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from adaptsft.data.documents import Documents
from adaptsft.errors import ConfigError
from adaptsft.model import attention
from adaptsft.model.sinks import with_sink_token
from tests.model import document_kernels
from tests.model.random_models import random_config, write_random_model
from tests.model.test_compile import built, packs, trained

OFFSETS = torch.tensor([0, 7, 40, 41, 64], dtype=torch.int32)


def by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    place = torch.arange(len(query))
    document = torch.bucketize(place, OFFSETS.long(), right=True)
    distance = place[:, None] - place
    seen = (document[:, None] == document) & (distance >= 0) & (distance < (window or len(query)))
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    scores = scale * torch.einsum("qhd,khd->hqk", query, key)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    sink = sinks[:, None, None].expand(*scores.shape[:2], 1)
    weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    return torch.einsum("hqk,khd->qhd", weights, value)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(
    ("backend", "head_dim", "softcap", "dtype", "tolerance"),
    [
        ("sdpa", 16, None, torch.float64, 1e-12),
        ("sdpa", 12, None, torch.float32, 1e-6),
        ("sdpa", 16, None, torch.bfloat16, 1e-2),
        ("sdpa", 16, 2.0, torch.float32, 1e-6),
        ("varlen", 16, None, torch.float32, 1e-6),
        ("flash", 16, None, torch.float32, 1e-6),
    ],
)
def test_outputs_and_gradients_are_those_of_the_softmax_with_a_sink(
    monkeypatch, backend, head_dim, softcap, dtype, tolerance, window
):
    document_kernels.install_flash(monkeypatch)
    documents, scale = Documents.build(OFFSETS, with_buckets=True), head_dim**-0.5
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(64, heads, head_dim, generator=generator) for heads in (4, 2, 2, 4)]
    # some below, some above the scores, and none that bf16 holds
    exact = [tensor.double() for tensor in (*random[:3], torch.tensor([-3.03, 0.07, 1.01, 6.06]))]

    def outputs_and_gradients(kind: torch.dtype, attend):
        inputs = [tensor.to(kind, copy=True).requires_grad_() for tensor in exact[:3]]
        sinks = exact[3].to(torch.promote_types(kind, torch.float32), copy=True).requires_grad_()
        out = attend(*inputs, sinks)
        out.backward(random[3].to(kind))
        return [out.detach(), *(tensor.grad for tensor in (*inputs, sinks))]

    expected = outputs_and_gradients(
        torch.float64, lambda *inputs: by_definition(*inputs, scale, window, softcap)
    )
    found = outputs_and_gradients(
        dtype,
        lambda *inputs: attention._BACKENDS[backend](
            *inputs[:3], documents, scale, window, softcap, 0.0, inputs[3]
        ),
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()


def test_bf16_heads_see_more_of_a_logit_than_bf16_holds():
    sinks, states = torch.tensor([6.06, -30.3]), torch.zeros(1, 2, 3, 16, dtype=torch.bfloat16)
    query, key, _ = with_sink_token(states, states, states, sinks, 0.25)
    scores = 0.25 * (query.double() @ key.double().mT)[0, :, :, 0]
    assert (scores - sinks[:, None]).abs().max() < 1e-3


def test_a_version_whose_kernels_differ_is_passed_over_or_refused(monkeypatch):
    flash = document_kernels.install_flash(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))

    def chosen(wanted: str, sinks: bool = True) -> str:
        config = LlamaConfig(head_dim=64)
        return attention.choose(wanted, torch.device("cuda"), torch.bfloat16, config, sinks)

    assert [chosen(name) for name in ("auto", "flash", "varlen")] == ["flash", "flash", "varlen"]
    flash._wrapped_flash_attn_varlen_forward = torch.ops.torch_attn._varlen_attn
    assert chosen("auto") == "varlen"
    assert chosen("auto", sinks=False) == "flash"
    with pytest.raises(ConfigError, match=r"attention=flash .*attention sinks.*no argument alibi"):
        chosen("flash")
    del flash._wrapped_flash_attn_varlen_backward
    with pytest.raises(ConfigError, match="no attribute '_wrapped_flash_attn_varlen_back"):
        chosen("flash")
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert chosen("auto") == "sdpa"
    with pytest.raises(ConfigError, match="ROCm"):
        chosen("varlen")


@pytest.mark.parametrize("backend", ["flash", pytest.param("varlen", marks=pytest.mark.nightly)])
def test_compiled_layers_stay_whole(tmp_path, device, monkeypatch, backend):
    """And learn what sdpa, eager, learns."""
    layer = {"layer_types": ["sliding_attention"], "sliding_window": 30, "num_hidden_layers": 1}
    folder = write_random_model(tmp_path / "model", random_config("granite_swa", **layer))
    plain = built(folder, device)
    assert plain.attention_backend == "sdpa"
    document_kernels.use(backend, monkeypatch, "aot_eager")
    model = built(folder, device, activation_checkpointing="per_op", compile=True)
    assert model.compilation.whole
    torch._dynamo.utils.counters.clear()
    for batch in packs(model.config.vocab_size)[:2]:
        documents = Documents.build(batch.documents.cu_seqlens, with_buckets=True)
        expected = trained(plain, dataclasses.replace(batch, documents=documents))
        for ours, theirs in zip(trained(model, batch), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert document_kernels.graphs() == 1
