"""MFU: operations of what a token meets, against the peak of the very card."""

from typing import Any

import numpy as np
import pytest
import torch

from adaptsft.errors import ConfigError
from adaptsft.model.language import causal_lm
from adaptsft.training import flops
from adaptsft.training.flops import active_parameters, expert_shares, operations
from adaptsft.training.gpus import GPUS, gpu_of, named_gpu, peak_flops
from tests.model_types.variants import NEEDS, config_of, variants


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 144G HBM3e", 989),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA Something New", None),
    ],
)
def test_the_peak_of_a_card_is_found_by_its_name(name, tera):
    assert peak_flops(name) == (None if tera is None else tera * 1e12)


def test_both_sizes_of_the_a100():
    sizes = {
        "NVIDIA A100-SXM4-40GB": 39.4,
        "NVIDIA A100-PCIE-40GB": 39.4,
        "NVIDIA A100-SXM4-80GB": 79.1,
    }
    for name, memory in sizes.items():
        found = gpu_of(name)
        assert found is not None and found.memory == memory
        assert (found.by == "NVLink 3") == ("PCIE" not in name)


def on_meta(model_type: str, **settings: Any) -> Any:
    with torch.device("meta"):
        return causal_lm(config_of(model_type, settings), "eager", torch.float32)


def test_of_the_experts_a_token_meets_as_many_as_it_is_sent_to():
    """Against sizes by hand: hidden 64, experts of 128 or 32, 4 of which a token meets 2."""
    for model_type, expert, layers in (
        ("mixtral", 3 * 64 * 128, 2),
        ("qwen3_moe", 3 * 64 * 32, 2),
        ("granitemoeshared", 3 * 64 * 128, 2),
        ("gpt_oss", 3 * 64 * 128 + 2 * 128 + 64, 2),  # with biases
    ):
        model = on_meta(model_type)
        total = sum(parameter.numel() for parameter in model.parameters())
        assert total - active_parameters(model) == layers * (4 - 2) * expert, model_type
    # those that all tokens are sent to are counted whole
    for model_type in ("qwen2_moe", "deepseek_v3", "inkling_text"):
        model = on_meta(model_type, **NEEDS.get(model_type, {}))
        routed = {name for name, p in model.named_parameters() if p in expert_shares(model)}
        assert routed and not any("shared" in name for name in routed), model_type
        assert set(expert_shares(model).values()) == {2 / 4}
    assert not expert_shares(on_meta("llama"))


def test_operations_are_of_what_a_token_meets():
    lengths = np.array([10, 30])
    for model_type, layers in (("mixtral", 2), ("llama", 2)):
        model = on_meta(model_type, tie_word_embeddings=False)
        config = model.config
        embedding = config.vocab_size * config.hidden_size
        products = active_parameters(model) - embedding
        attention = 12 * layers * config.hidden_size * (10**2 + 30**2) / 2 / 40
        found = operations(model, lengths, lengths)
        assert found.needed == pytest.approx(6 * products + attention)
        assert found.forward * 2 == pytest.approx(found.backward)
        assert found.blocks == pytest.approx(
            found.forward - 2 * (embedding + config.hidden_size)  # head and last norm
        )


def test_experts_without_a_known_number_per_token_are_an_error(monkeypatch):
    monkeypatch.setattr(flops, "EXPERTS_PER_TOKEN", ())
    model = on_meta("mixtral")
    for module in model.modules():
        if hasattr(module, "top_k"):
            del module.top_k
    with pytest.raises(ConfigError, match=r"add num_experts_per_tok to config\.json"):
        active_parameters(model)


@pytest.mark.nightly
def test_the_experts_of_every_type_are_found():
    types = set()
    for name, (model_type, settings) in variants().items():
        try:
            model = on_meta(model_type, **settings)
        except Exception:  # no tiny one can be made: tests/model_types says why
            continue
        shares = expert_shares(model)
        for parameter_name, parameter in model.named_parameters():
            if "experts." in parameter_name and parameter.ndim == 3:
                shared = "shared_experts." in parameter_name
                assert (parameter in shares) != shared, (name, parameter_name)
                types.add(model_type)
    assert len(types) > 50


def test_a_gpu_by_the_name_of_the_command_line():
    assert named_gpu("h100") is GPUS["H100"] and named_gpu("a100-40gb") is GPUS["A100 40GB"]
    with pytest.raises(ConfigError, match=r"--gpu V100: not known; one of H200, .*4090"):
        named_gpu("V100")
