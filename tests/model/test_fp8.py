"""FP8 products: which layers, what is refused, and that nothing else changes; emulated on a CPU."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptsft import export
from adaptsft.config.schema import LoraConfig, ModelConfig
from adaptsft.errors import ConfigError
from adaptsft.model import fp8
from adaptsft.model.language import causal_lm
from adaptsft.train import train
from tests.model import float8_stub
from tests.model.random_models import random_config
from tests.runs import metrics_of, saved_state, small_config

ROWWISE = ModelConfig(path="some/model", fp8="rowwise")


def test_a_run_differs_by_rounding_alone_and_resumes_bitwise(
    tmp_path, tiny_model, monkeypatch, capsys
):
    float8_stub.use(monkeypatch)
    monkeypatch.setattr(fp8, "EMULATED", True)
    model, settings = tiny_model("llama", tied=False), {"log__every": 1, "train__lr": 1e-3}
    plain, whole, again = (
        small_config(tmp_path, model, name, **settings, model__fp8=value)
        for name, value in (("plain", "none"), ("whole", "rowwise"), ("again", "rowwise"))
    )
    train(plain)
    assert "model.fp8" not in capsys.readouterr().err
    train(whole)
    line = "model.fp8: rowwise, 14 of the decoder's 14 linear layers; without train.compile slower"
    assert line in capsys.readouterr().err
    for ours, theirs in zip(metrics_of(whole), metrics_of(plain), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.1)
        assert ours["loss"] != theirs["loss"]
    final, expected = (
        load_file(Path(config.run_dir) / "final" / "model.safetensors") for config in (whole, plain)
    )
    described = {name: (tensor.shape, tensor.dtype) for name, tensor in final.items()}
    assert described == {name: (t.shape, t.dtype) for name, t in expected.items()}

    with monkeypatch.context() as elsewhere:  # a machine without such a GPU
        elsewhere.setattr(fp8, "EMULATED", False)
        assert export.main([whole.run_dir, str(tmp_path / "out"), "--dtype", "fp32"]) == 0
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, final[name]) for name, tensor in exported.items())

    again.resume = str(Path(whole.run_dir) / "checkpoints" / "step_00000003")
    train(again)
    assert metrics_of(again) == metrics_of(whole)[3:]
    last = saved_state(Path(whole.run_dir) / "checkpoints" / "step_00000006")
    found = saved_state(Path(again.run_dir) / "checkpoints" / "step_00000006")
    assert all(torch.equal(tensor, last[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        ("llama", {}, (14, 0, 0)),
        ("llama", {"intermediate_size": 100}, (8, 6, 0)),
        # experts are matrices of three dimensions, a router is a layer of its own kind
        ("mixtral", {}, (8, 0, 0)),
        # of every layer one that is dense beside the experts, with a gate of one output
        ("qwen2_moe", {"shared_expert_intermediate_size": 32}, (14, 0, 2)),
        ("jetmoe", {"num_local_experts": 16}, (2, 0, 4)),
        ("minimax", {}, (7, 0, 0)),  # an attention's output gate is no router
    ],
)
def test_layers_of_the_decoder_but_routers_and_odd_ones(
    monkeypatch, model_type, settings, expected
):
    float8_stub.use(monkeypatch)
    monkeypatch.setattr(fp8, "EMULATED", True)
    with torch.device("meta"):
        model = causal_lm(random_config(model_type, **settings), "eager", torch.float32)
    names = [name for name, _ in model.named_parameters()]
    counts = fp8.convert_to_fp8(model)
    assert names == [name for name, _ in model.named_parameters()]
    converted = [name for name, m in model.named_modules() if hasattr(m, "linear_mm_config")]
    assert len(converted) == counts.converted and "lm_head" not in converted
    assert counts == expected
    if counts.odd:
        assert str(counts).endswith("(6 stay bf16: a dimension is no multiple of 16)")


def test_what_cannot_be_honoured_is_refused(monkeypatch):
    cpu, gpu, half = torch.device("cpu"), torch.device("cuda"), torch.bfloat16
    fp8.check_fp8(ModelConfig(path="some/model"), cpu, torch.float32)
    with pytest.raises(ConfigError, match=r"model\.fp8=rowwise .*9\.0 .*the CPU: set .*=none"):
        fp8.check_fp8(ROWWISE, cpu, half)
    adapters = ModelConfig(path="some/model", fp8="rowwise", lora=LoraConfig(rank=4))
    with pytest.raises(ConfigError, match=r"model\.lora\.rank=4"):
        fp8.check_fp8(adapters, cpu, half)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some card")
    for capability in ((8, 9), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, have=capability: have)
        what = "some card" if capability < (9, 0) else "compute_dtype=bf16"
        with pytest.raises(ConfigError, match=what):
            fp8.check_fp8(ROWWISE, gpu, torch.float32)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"torchao.*pip install 'adaptsft\[fp8\]'"):
        fp8.check_fp8(ROWWISE, gpu, half)
    monkeypatch.setattr(fp8, "EMULATED", True)
    odd = causal_lm(random_config("gpt2", n_embd=64), "eager", torch.float32)  # Conv1D
    with pytest.raises(ConfigError, match=r"no linear layers that it applies to.*fp8=none"):
        fp8.convert_to_fp8(odd)
