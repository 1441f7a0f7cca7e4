"""Documents of a pack attend to themselves only, whichever back end runs."""

import json
import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, DeepseekV3Config, Gemma2Config, LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adaptsft.data.documents import Documents
from adaptsft.errors import ConfigError
from adaptsft.model import attention
from adaptsft.model.context_parallel import exchanged
from adaptsft.model.modules import head_sizes
from adaptsft.objectives.build import NLL
from tests.model import document_kernels
from tests.model.batches import LENGTHS, Operators, built, packed_batch
from tests.model.test_sinks import OFFSETS, by_definition


def test_sliding_window_and_softcap_are_honoured_within_a_pack(tiny_model, device, tmp_path):
    folder = tmp_path / "windowed"
    shutil.copytree(tiny_model("gemma2", tied=True), folder)
    values = json.loads((folder / "config.json").read_text())
    values |= {"sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    (folder / "config.json").write_text(json.dumps(values))
    model, pretrained = built(folder, device)
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    batch = packed_batch(LENGTHS, pretrained.config.vocab_size)
    _, tokens, _ = model.token_loss(batch, NLL, None, 1.0)
    ids = batch.ids[1:2]
    logits = reference(input_ids=ids, use_cache=False).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    offset = sum(LENGTHS[0]) - len(LENGTHS[0])
    assert (tokens.logp[offset : offset + 15] - expected).abs().max() < 2e-6


def test_another_document_of_the_pack_cannot_be_seen(tiny_model, device):
    model, pretrained = built(tiny_model("llama", tied=False), device)
    batch = packed_batch(LENGTHS, pretrained.config.vocab_size)
    _, before, _ = model.token_loss(batch, NLL, None, 1.0)
    batch.ids[0, 5:14] = 7  # the second document of the first pack; the targets stay
    _, after, _ = model.token_loss(batch, NLL, None, 1.0)
    changed = (before.logp != after.logp).nonzero().squeeze(1).tolist()
    assert set(changed) <= set(range(4, 12)) and changed


def test_varlen_repeats_keys_only_where_it_has_to():
    """Traced with fake tensors: the CPU has no such kernel, and shapes are what counts."""
    documents = Documents.build(torch.tensor([0, 7, 64], dtype=torch.int32), False)
    with FakeTensorMode(allow_non_fake_inputs=True), Operators() as operators:
        query = torch.empty(64, 4, 32, dtype=torch.bfloat16)
        key, value = (torch.empty(64, 2, 32, dtype=torch.bfloat16) for _ in range(2))
        out = attention._varlen(query, key, value, documents, 1.0, 5, None, 0.0)
    assert out.shape == query.shape
    (inputs,) = (args for name, args in operators.seen if name == "torch_attn::_varlen_attn")
    heads = [tensor.shape[1] for tensor in inputs[:3]]
    assert heads == ([4, 2, 2] if attention.VARLEN_GROUPS_HEADS else [4, 4, 4])


def test_heads_that_a_gpu_kernel_does_not_take_are_known_before_it_runs():
    for head_dim, reason in ((64, ""), (36, ""), (512, "at most 256")):
        config = LlamaConfig(head_dim=head_dim)
        for backend in ("flash", "varlen"):
            found = attention.unsupported_reason(backend, config)
            assert reason in found and bool(reason) == bool(found), (head_dim, backend, found)
    assert "softcap" in attention.unsupported_reason("varlen", Gemma2Config())
    assert not attention.unsupported_reason("flash", Gemma2Config())


@pytest.mark.parametrize("sinks", [None, torch.tensor([-3.0, 0.1, 1.0, 6.0])])
@pytest.mark.parametrize("backend", ["sdpa", "varlen", "flash"])
def test_values_may_be_smaller_or_larger_than_queries(monkeypatch, backend, sinks):
    """Multi-head latent attention; kernels for GPUs want one size."""
    document_kernels.install_flash(monkeypatch)
    seam = ALL_ATTENTION_FUNCTIONS[attention.HF_ATTENTION_NAMES[backend]]
    documents = Documents.build(OFFSETS, with_buckets=True)
    for size, of_value in ((24, 16), (12, 20), (12, 12)):
        query, key, value, grad = (torch.randn(64, 4, n) for n in (size, size, of_value, of_value))
        found = []
        for by_seam in (False, True):
            inputs = [part.clone().requires_grad_() for part in (query, key, value)]
            if by_seam:
                rows = [part.transpose(0, 1)[None] for part in inputs]
                out, _ = seam(torch.nn.Module(), *rows, None, documents=documents, s_aux=sinks)
                out = out[0]
            else:
                of_heads = torch.full((4,), -torch.inf) if sinks is None else sinks
                out = by_definition(*inputs, of_heads, size**-0.5, None, None)
            out.backward(grad)
            found.append([out.detach(), *(part.grad for part in inputs)])
        for ours, theirs in zip(found[1], found[0], strict=True):
            assert (ours - theirs).norm() < 1e-6 * theirs.norm()


def test_latent_attention_is_known_by_its_queries_and_values():
    """Of which head_dim is the rotated part alone."""
    config = DeepseekV3Config()
    assert config.head_dim == 64 and head_sizes(config) == (192, 128)
    for backend in ("flash", "varlen"):
        assert not attention.unsupported_reason(backend, config)
        wide = DeepseekV3Config(qk_nope_head_dim=200)
        assert attention.unsupported_reason(backend, wide).endswith("those of this model 264")
    # queries, keys, values and outputs of every head and layer
    assert exchanged(2, config) == 61 * 128 * 2 * (192 + 128)


def test_attention_that_cannot_be_honoured_is_refused(device):
    with pytest.raises(ConfigError, match=r"model\.attention=varlen.*GPU"):
        attention.choose("varlen", device, torch.bfloat16, None)
    seam = ALL_ATTENTION_FUNCTIONS[attention.HF_ATTENTION_NAMES["sdpa"]]
    documents = Documents.build(torch.tensor([0, 4]), with_buckets=True)
    states = torch.randn(1, 2, 4, 8)
    more = {"documents": documents, "position_bias": torch.zeros(2)}
    with pytest.raises(ConfigError, match="position_bias"):
        seam(torch.nn.Module(), states, states, states, None, **more)
    longer = torch.randn(1, 2, 5, 8)  # as DeepSeek-V4, where a document is long enough
    with pytest.raises(ConfigError, match="other keys than one for each token"):
        seam(torch.nn.Module(), states, longer, longer, None, documents=documents)
