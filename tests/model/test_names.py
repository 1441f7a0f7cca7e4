"""Checkpoints under other names than the model's, and heads that are tied in config.json only."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adaptsft.errors import ConfigError
from tests.model.batches import built
from tests.model.checkpoints import (
    changed,
    names_in,
    renamed,
    saved,
    trained_and_exported,
    trained_resumed_and_on_two_ranks,
)

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 400, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}


def test_a_stored_head_that_the_config_ties_is_its_own_as_for_transformers(
    tiny_model, tmp_path, device, capfd
):
    source = tiny_model("qwen2", tied=False)
    own = changed(source, tmp_path / "own", tie_word_embeddings=True)
    names = trained_and_exported(own, tmp_path / "final", device)
    assert {HEAD, EMBEDDING} <= names
    assert "lm_head.weight differs from the embeddings" in capfd.readouterr().err
    assert not json.loads((tmp_path / "final" / "config.json").read_text())["tie_word_embeddings"]

    tied = tiny_model("qwen2", tied=True)
    both = changed(tied, tmp_path / "both", lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    assert HEAD not in trained_and_exported(both, tmp_path / "both_final", device)
    assert "differs" not in capfd.readouterr().err
    other = changed(tied, tmp_path / "other", renamed(EMBEDDING, HEAD))
    assert EMBEDDING not in trained_and_exported(other, tmp_path / "other_final", device)


def test_a_run_with_such_a_head_trains_both_on_any_number_of_ranks(tiny_model, tmp_path):
    source = tiny_model("qwen2", tied=False)
    source = changed(source, tmp_path / "own", tie_word_embeddings=True)
    final = trained_resumed_and_on_two_ranks(tmp_path, source)
    before = load_file(source / "model.safetensors")
    assert all(not torch.equal(final[name], before[name]) for name in (HEAD, EMBEDDING))


def test_a_head_that_is_missing_is_never_random(tiny_model, tmp_path, device):
    source = tiny_model("llama", tied=False)
    with pytest.raises(ConfigError, match=r"no lm_head\.weight.*tie_word_embeddings=true"):
        built(changed(source, tmp_path / "headless", lambda t: t.pop(HEAD)), device)


@pytest.mark.parametrize("kind", ["pythia", "gpt2", "llama", "base"])
def test_names_of_the_hub_are_read_and_written_as_transformers_does(
    tiny_model, tmp_path, device, kind
):
    if kind == "pythia":
        source = saved(tmp_path / "saved", "gpt_neox", **SMALL)
        assert "embed_out.weight" in names_in(source)

        def change(tensors):
            place = "gpt_neox.layers.0.attention"
            tensors[f"{place}.rotary_emb.inv_freq"] = torch.ones(8)
            tensors[f"{place}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            tensors[f"{place}.masked_bias"] = torch.tensor(-1e9)

        written = names_in(source)
    elif kind == "gpt2":
        source = saved(tmp_path / "saved", "gpt2", **GPT2)
        written = names_in(source)

        def change(tensors):
            renamed("transformer.", "")(tensors)
            tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
            tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)

    elif kind == "llama":
        source = tiny_model("llama", tied=False)
        written = names_in(source)

        def change(tensors):
            tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    else:
        source, change = tiny_model("qwen3", tied=True), renamed("model.", "")
        written = names_in(source)
    hub = changed(source, tmp_path / "hub", change)
    assert names_in(hub) != names_in(source)
    assert trained_and_exported(hub, tmp_path / "final", device) == written


def test_a_base_model_is_exported_as_the_causal_model_that_was_trained(
    tiny_model, tmp_path, device
):
    source = tiny_model("qwen3", tied=True)
    base = changed(source, tmp_path / "b", renamed("model.", ""), architectures=["Qwen3Model"])
    trained_and_exported(base, tmp_path / "final", device)
    values = json.loads((tmp_path / "final" / "config.json").read_text())
    assert values["architectures"] == ["Qwen3ForCausalLM"]


def test_what_is_no_causal_language_model_is_refused(tmp_path, device):
    other = saved(tmp_path / "t5", "gpt2", **GPT2)
    with pytest.raises(ConfigError, match="no causal language model of model_type=t5"):
        built(changed(other, tmp_path / "two", model_type="t5"), device)


def test_what_is_no_language_model_is_refused(tiny_model, tmp_path, device):
    source = tiny_model("llama", tied=False)
    with pytest.raises(ConfigError, match="model_type=vit is no language model"):
        built(changed(source, tmp_path / "vit", model_type="vit", vocab_size=None), device)
    with pytest.raises(ConfigError, match="hidden_size"):
        built(changed(source, tmp_path / "odd", hidden_size="large"), device)


def test_quantised_weights_are_refused(tiny_model, tmp_path):
    settings = {"quantization_config": {"quant_method": "fp8"}}
    folder = changed(tiny_model("llama", tied=False), tmp_path / "fp8", **settings)
    with pytest.raises(ConfigError, match=r"quantised.*fp8"):
        built(folder, torch.device("cpu"))


def test_a_name_that_is_stored_twice_is_refused(tiny_model, tmp_path, device):
    def change(tensors):
        tensors["norm.weight"] = tensors["model.norm.weight"].clone()

    folder = changed(tiny_model("llama", tied=False), tmp_path / "twice", change)
    with pytest.raises(ConfigError, match=r"model\.norm\.weight twice"):
        built(folder, device)
