"""Adapters in a sharded model: what they cost, and what is refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import LoraConfig, ModelConfig, TrainConfig
from adaptsft.data.stop import TurnEnd
from adaptsft.distributed.ranks import device_mesh
from adaptsft.errors import ConfigError
from adaptsft.evals.backends.decode import decode
from adaptsft.evals.backends.hf import HuggingFace
from adaptsft.evals.in_training import generating
from adaptsft.evals.protocol import Sampling
from adaptsft.model.build import build_model
from adaptsft.model.export import export
from adaptsft.model.language import load_whole
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.build import NLL
from adaptsft.training.flops import flops_per_token
from tests.model.batches import LENGTHS, Operators, built, packed_batch
from tests.model.checkpoints import assert_same, names_in, saved
from tests.runs import small_config
from tests.test_plan import ranks
from tests.training.test_normalizer import tokenised


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(rank=4, **settings)


def gradient_products_of_the_head(folder: Path, device: torch.device, config: LoraConfig) -> int:
    """Matrix products as large as the head's gradient, [vocabulary, width], in a micro-batch."""
    model, _ = built(folder, device, lora=config)
    shape = tuple(model.get_output_embeddings().weight.shape)
    batch = packed_batch(LENGTHS, shape[0])
    with Operators() as operators:
        loss, _, _ = model.token_loss(batch, NLL, None, 1.0)
        loss.backward()
    return sum(
        "mm" in name and (args[-2].shape[0], args[-1].shape[1]) == shape
        for name, args in operators.seen
    )


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_computes_no_gradient_of_a_frozen_head(tiny_model, device, tied):
    folder = tiny_model("llama", tied=tied)
    assert gradient_products_of_the_head(folder, device, LoraConfig()) == 1
    assert gradient_products_of_the_head(folder, device, lora()) == 0


class Reduced(TorchDispatchMode):
    """Elements that reduce-scatters are given."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "reduce_scatter" in func.name():
            tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
            self.count += max(tensor.numel() for tensor in tensors)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_only_the_adapters_have_gradients_and_are_reduced(tiny_model, compute):
    folder = tiny_model("llama", tied=False)
    config = ModelConfig(path=str(folder), compute_dtype=compute, lora=lora())
    with ranks(2):
        device, pretrained = torch.device("cpu"), load_pretrained(config)
        mesh = device_mesh(device, 1)
        model = build_model(config, TrainConfig(), pretrained, mesh, device)
        batch = packed_batch(LENGTHS, pretrained.config.vocab_size)
        with Reduced() as reduced:
            loss, _, _ = model.token_loss(batch, NLL, None, 1.0)
            loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.grad is not None}
    assert len(trained) == 28 and all("lora_" in name for name in trained)
    assert reduced.count == sum(parameter.numel() for parameter in trained.values())
    for name, parameter in model.named_parameters():
        frozen = torch.bfloat16 if compute == "bf16" else torch.float32
        assert parameter.dtype == (torch.float32 if name in trained else frozen), name
    for parameter in trained.values():
        assert parameter.grad.dtype == torch.float32


def test_a_frozen_weight_costs_two_products_of_three(tiny_model, tmp_path, device):
    folder = tiny_model("llama", tied=False)
    data = tokenised(small_config(tmp_path, folder))
    whole, adapted = (built(folder, device, lora=config)[0] for config in (LoraConfig(), lora()))
    trained = flops_per_token(whole, data)
    frozen = flops_per_token(whole.requires_grad_(False), data)
    layers = sum(p.numel() for layer in whole.model.layers for p in layer.parameters())
    assert trained - frozen > 2 * layers, "and a third of the head, for the target tokens"
    added = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert flops_per_token(adapted, data) == pytest.approx(frozen + 6 * added, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (
            {"target_modules": ["q_proj", "vproj"]},
            ["'vproj' is no linear layer; did you mean v_proj?", "k_proj", "down_proj"],
        ),
        ({"target_modules": ["query"]}, ["query", "not found", "There are q_proj, k_proj"]),
        ({"target_modules": r".*\.layers\.9\..*"}, ["not found", "There are q_proj"]),
        ({"target_modules": ["lm_head"]}, ["lm_head is the model's head", "choose among q_proj"]),
        ({"target_modules": r".*(q_proj|lm_head)"}, ["lm_head is the model's head"]),
        (
            {"target_modules": ["embed_tokens", "q_proj"]},
            ["embed_tokens (Embedding) cannot carry an adapter"],
        ),
        ({"target_modules": ["norm"]}, ["RMSNorm", "is not supported", "There are q_proj"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_targets_that_are_no_linear_layers_below_the_head(tiny_model, device, settings, parts):
    with pytest.raises(ConfigError) as error:
        built(tiny_model("llama", tied=False), device, lora=lora(**settings))
    assert f"model.lora.target_modules={settings['target_modules']}" in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_targets_are_those_of_peft(tiny_model, device):
    folder = tiny_model("llama", tied=False)
    for targets, expected in (
        ("all-linear", 14),
        (["q_proj", "v_proj"], 4),
        (["layers.0.mlp.up_proj"], 1),
        (r".*\.layers\.1\..*_proj", 7),
    ):
        model, _ = built(folder, device, lora=lora(target_modules=targets))
        assert sum(p.requires_grad for p in model.parameters()) == 2 * expected, targets


BASE = ["model.path=m", "data.path=d.jsonl", "run_dir=r", "model.lora.rank=8"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["model.freeze=[embed]"], ["model.freeze=['embed']", "rank=8", "leave it out"]),
        (["model.add_tokens=[<a>]"], ["model.add_tokens=['<a>']", "never be learned"]),
        (["model.lora.rank=-1"], ["model.lora.rank=-1", "must not be negative"]),
        (["model.lora.alpha=0"], ["model.lora.alpha=0", "above 0"]),
        (["model.lora.dropout=1.0"], ["model.lora.dropout=1.0", "[0, 1)"]),
        (["model.lora.target_modules=[]"], ["model.lora.target_modules=[]", "list of names"]),
        (["model.lora.target_modules=[1]"], ["model.lora.target_modules=[1]", "list of names"]),
        (["model.lora.target_modules=[all-linear]"], ["alone, not in a list"]),
        (["model.lora.target_modules='(a'"], ["not a regular expression"]),
        (["model.lora.r=8"], ["unknown key model.lora.r; did you mean model.lora.rank"]),
        (["model.lora.lora_alpha=8"], ["did you mean model.lora.alpha"]),
        (["model.lora=8"], ["model.lora is a group of keys", "model.lora.rank=8"]),
        (
            ["model.lora.modules_to_save=[norm]"],
            ["modules_to_save", "no other weights are trained beside"],
        ),
    ],
    ids=lambda value: str(value[0]),
)
def test_what_does_not_go_with_adapters(arguments, parts):
    with pytest.raises(ConfigError) as error:
        load_config([*BASE, *arguments])
    for part in parts:
        assert part in str(error.value)


def test_settings_without_a_rank_have_no_effect(capsys):
    load_config([*BASE, "model.lora.rank=0", "model.lora.use_dora=true", "model.lora.alpha=7"])
    printed = capsys.readouterr().err
    assert "model.lora.use_dora=true has no effect with model.lora.rank=0" in printed
    assert "model.lora.alpha=7" in printed and "model.lora.rank=0 has" not in printed


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"rank=8 needs peft.*pip install 'adaptsft\[lora\]'"):
        load_config(BASE)
    load_config([*BASE, "model.lora.rank=0"])


def test_a_quantised_base_is_refused_with_adapters_too(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama", tied=False), tmp_path / "quantised")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"bitsandbytes.*nor do adapters"):
        load_pretrained(ModelConfig(path=str(folder), lora=lora()))


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "phi3", "gemma2"])
@pytest.mark.parametrize("method", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_peft_and_transformers_load_what_is_exported(tmp_path, device, model_type, method):
    """Transposed weights, fused ones, files with other names than the model, a tied head."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 128, "vocab_size": 400, "bos_token_id": None}
    sizes |= {"eos_token_id": 2, "pad_token_id": 0}
    source = saved(tmp_path / "saved", model_type, AutoModelForCausalLM, **sizes)
    model, pretrained = built(source, device, lora=lora(**method))
    start = model.state_dict()
    magnitudes = [name for name in start if "magnitude" in name]
    assert bool(magnitudes) == bool(method)
    batch = packed_batch([[16]], pretrained.config.get_text_config().vocab_size)
    base = load_whole(source, torch.float32)
    assert_same(model.eval(), batch, base)  # B is 0: new adapters change nothing
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.03 * (1 + number % 3))
    export(model, pretrained, tmp_path / "adapter", "fp32", TurnEnd())
    adapted = load_whole(tmp_path / "adapter", torch.float32)
    assert_same(model, batch, adapted)
    export(model, pretrained, tmp_path / "merged", "fp32", TurnEnd(), merge=True)
    assert names_in(tmp_path / "merged") == names_in(source)
    ids = batch.ids[:, :12]
    merged = load_whole(tmp_path / "merged", torch.float32)
    with torch.no_grad():
        plain, expected, found = (m.eval()(ids).logits for m in (base, adapted, merged))
    assert (expected - plain).abs().max() > 0.01
    assert (found - expected).abs().max() < 1e-4


def test_tasks_in_training_decode_as_peft_does(tmp_path, tiny_model, device):
    model, pretrained = built(tiny_model("llama", tied=False), device, lora=lora(use_dora=True))
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * (1 + number % 3))
    export(model, pretrained, tmp_path / "adapter", "fp32", TurnEnd())
    prompts = [[20, 21, 22], [30, 31, 32, 33, 34]]
    asked: Any = (pretrained.tokenizer, prompts, [0, 0], Sampling(0.0, 1.0, 6), set())
    with generating(model):
        ours = decode(model, *asked, context=512, lockstep=True)
    theirs = decode(HuggingFace(str(tmp_path / "adapter")).model, *asked, context=512)
    assert [output.text for output in ours] == [output.text for output in theirs]
