"""Mixtures of experts: what a rank reads of them, where they are split, and what is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from adaptsft.analysis.memory import Group
from adaptsft.config.schema import LoraConfig, ModelConfig, TrainConfig
from adaptsft.data.stop import TurnEnd
from adaptsft.distributed.ranks import device_mesh, process_group, rank, world_size
from adaptsft.errors import ConfigError
from adaptsft.model import load
from adaptsft.model.build import build_model
from adaptsft.model.experts import describe_experts
from adaptsft.model.export import export
from adaptsft.model.fsdp import ShardedModel, shard_dim
from adaptsft.model.pretrained import load_pretrained
from adaptsft.model.router import Routers
from adaptsft.objectives.build import NLL
from adaptsft.training.optim import clipped
from tests.distributed.two_ranks import on_two_ranks
from tests.model.batches import LENGTHS, built, packed_batch
from tests.model.checkpoints import (
    changed,
    names_in,
    renamed,
    saved,
    trained_and_exported,
    trained_resumed_and_on_two_ranks,
)
from tests.model.random_models import DELTA_NET
from tests.model.test_multimodal import multimodal
from tests.model.test_names import SMALL
from tests.model_types.variants import config_of

KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "mixtral_of_one": {"num_local_experts": 1, "num_experts_per_tok": 1},
    "deepseek_v3": {
        **{"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
        **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim"), 16),
        **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "moe_intermediate_size": 32},
    },
    "hrm_text": {},  # fused in the files, and split
    "olmo_hybrid": DELTA_NET | {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_moe": {"num_experts": 5, "moe_intermediate_size": 32, "head_dim": 16},
}

WHOLE = ("olmo_hybrid", "hrm_text")  # each target is computed whole, and cut
SPLIT = ("mixtral", "mixtral_of_one", "qwen3_moe", *WHOLE)


def made(folder: Path, kind: str) -> Path:
    settings = {"num_key_value_heads": 4, "num_experts_per_tok": 2} | KINDS[kind]
    return saved(folder, kind.removesuffix("_of_one"), **SMALL | settings)


def gradients(model: ShardedModel) -> dict[str, Tensor]:
    batch = packed_batch(LENGTHS, SMALL["vocab_size"])
    model.eval()
    model.token_loss(batch, NLL, None, 1.0 / len(batch.targets))[0].backward()
    found = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
    return {name: gradient.full_tensor() for name, gradient in found}


def load_all(folder: Path) -> None:
    """Every model of the folder: its tensors and gradients, what a rank has read, its export."""
    read: list[tuple[str, int]] = []
    original = load._read

    def noted(*arguments: Any) -> Tensor:
        tensor = original(*arguments)
        read.append((arguments[1], tensor.numel()))
        return tensor

    load._read = noted
    with process_group("cpu") as device:
        for kind in SPLIT:
            config = ModelConfig(path=str(folder / kind))
            pretrained, mesh = load_pretrained(config), device_mesh(device, 1)
            read.clear()
            model = build_model(config, TrainConfig(), pretrained, mesh, device)
            shards = {name: p.to_local().clone() for name, p in model.named_parameters()}
            state = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
            out = folder / f"{kind}-{world_size()}"
            export(model, pretrained, out, "fp32", TurnEnd())
            content = {"state": state, "read": read[:], "shards": shards}
            content["gradients"] = gradients(model)
            content["norm"], _ = clipped(model, torch.ones(()), 1.0)
            torch.save(content, out.with_suffix(f".{rank()}.pt"))
    load._read = original


def test_each_rank_reads_its_own_experts_and_two_ranks_are_one(tmp_path):
    for kind in SPLIT:
        made(tmp_path / kind, kind)
    load_all(tmp_path)
    codes, printed = on_two_ranks(load_all, tmp_path, log=tmp_path / "log")
    assert codes == [0, 0], printed[-4000:]
    for kind in SPLIT:
        one = torch.load(tmp_path / f"{kind}-1.0.pt")
        both = [torch.load(tmp_path / f"{kind}-2.{number}.pt") for number in range(2)]
        written = load_file(tmp_path / f"{kind}-1" / "model.safetensors")
        source = load_file(tmp_path / kind / "model.safetensors")
        for final in (written, load_file(tmp_path / f"{kind}-2" / "model.safetensors")):
            assert final.keys() == source.keys()
            assert all(torch.equal(final[name], tensor) for name, tensor in source.items())
        for name, tensor in one["state"].items():
            assert torch.equal(both[0]["state"][name], tensor), name
        for name, gradient in one["gradients"].items():  # the ranks' sum, of the same batch
            torch.testing.assert_close(both[1]["gradients"][name], 2 * gradient, msg=name)
        torch.testing.assert_close(both[1]["norm"], 2 * one["norm"])
        read = {name for name, _ in one["read"]}
        assert read == {name for name in source if ".experts." in name} or kind in WHOLE
        total = sum(size for _, size in one["read"])
        sizes = [sum(size for _, size in of["read"]) for of in both]
        if kind == "qwen3_moe":
            names = [{name for name, _ in of["read"]} for of in both]
            assert not names[0] & names[1] and names[0] | names[1] == read
            assert sizes == [total * 3 // 5, total * 2 // 5]
        elif kind in WHOLE:
            assert sizes == [total] * 2
        else:  # also where a rank would have no expert: half of each matrix
            assert sizes == [total // 2] * 2
        for of in both:
            group = Group.of([torch.nn.Parameter(t) for t in one["state"].values()], 2)
            assert sum(shard.numel() for shard in of["shards"].values()) <= group.local


def test_experts_that_are_fewer_than_ranks_are_split_within():
    assert shard_dim((128, 1536, 2048), 64) == 0
    assert shard_dim((8, 28672, 4096), 16) == 2
    assert shard_dim((8, 28672, 100), 16) == 1
    assert shard_dim((8, 30, 100), 16) == 0
    assert shard_dim((8, 64), 16) == 0
    stack = torch.nn.Parameter(torch.empty(8, 64, 128, device="meta"))
    assert Group.of([stack], 16).local == stack.numel() // 16


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_are_written_in_the_layout_that_they_came_in(tmp_path, device, kind):
    source = made(tmp_path / kind, kind)
    assert trained_and_exported(source, tmp_path / "final", device) == names_in(source)

    def stack(tensors: dict[str, Tensor]) -> None:
        gate, up, down = ("w1", "w3", "w2") if kind == "mixtral" else ("gate", "up", "down")
        tail = ".weight" if kind == "mixtral" else "_proj.weight"
        for layer in range(2):
            place = next(n for n in tensors if f"layers.{layer}." in n and ".experts.0." in n)
            place = place.partition(".experts.")[0] + ".experts."
            count = KINDS[kind].get("num_experts", 4)
            both = [
                torch.cat([tensors.pop(f"{place}{i}.{part}{tail}") for part in (gate, up)])
                for i in range(count)
            ]
            tensors[f"{place}gate_up_proj"] = torch.stack(both)
            downs = [tensors.pop(f"{place}{i}.{down}{tail}") for i in range(count)]
            tensors[f"{place}down_proj"] = torch.stack(downs)

    fused = changed(source, tmp_path / "fused", stack)
    assert any(name.endswith("experts.down_proj") for name in names_in(fused))
    assert trained_and_exported(fused, tmp_path / "fused_final", device) == names_in(fused)
    bare = changed(source, tmp_path / "bare", renamed("model.", ""))
    trained_and_exported(bare, tmp_path / "bare_final", device)


def test_what_is_not_trained_is_written_as_it_was(tmp_path, device):
    """The bias that DeepSeek-V3 adds to choose experts, also where weights are rounded to bf16."""
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    bias = torch.tensor([7.001, 7.002, 7.003, 7.004])
    source = made(tmp_path / "made", "deepseek_v3")
    source = changed(source, tmp_path / "source", lambda tensors: tensors.update({name: bias}))
    assert trained_and_exported(source, tmp_path / "final", device) == names_in(source)
    model, pretrained = built(source, device)
    export(model, pretrained, tmp_path / "bf16", "bf16", TurnEnd())
    written = load_file(tmp_path / "bf16" / "model.safetensors")
    assert torch.equal(written[name], bias)
    assert written["model.layers.1.mlp.experts.3.up_proj.weight"].dtype == torch.bfloat16


def test_experts_that_are_stored_the_other_way_round_are_written_so(tmp_path, device):
    """As those of Qwen3-VL on the hub: transformers transposes where the shape asks for it."""
    source = multimodal(tmp_path / "saved", "qwen3_vl_moe")

    def transpose(tensors):
        for name in [name for name in tensors if ".experts." in name]:
            tensors[name] = tensors[name].transpose(1, 2).contiguous()

    hub = changed(source, tmp_path / "hub", transpose)
    trained_and_exported(hub, tmp_path / "final", device, AutoModelForMultimodalLM)
    shapes = [
        {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
        for folder in (source, hub, tmp_path / "final")
    ]
    assert shapes[1] == shapes[2] != shapes[0]


def test_experts_carry_no_adapters(tiny_model, device):
    for names in (["q_proj", "gate_proj"], ["q_proj", "gate_proj", "up_proj", "down_proj"]):
        lora = LoraConfig(rank=2, target_modules=names)
        with pytest.raises(ConfigError, match=r"model\.lora.*q_proj, k_proj.*experts are stacked"):
            built(tiny_model("qwen3_moe"), device, lora=lora)


def test_a_mixture_is_trained_killed_and_resumed_and_two_ranks_are_one(tiny_model, tmp_path):
    final = trained_resumed_and_on_two_ranks(tmp_path, tiny_model("qwen3_moe"))
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in final


def test_experts_that_do_not_fit_are_refused_by_name(tmp_path, device):
    source = made(tmp_path / "source", "qwen3_moe")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"

    def refused(change: Any, message: str, **settings: Any) -> None:
        folder = changed(source, tmp_path / str(len(list(tmp_path.iterdir()))), change, **settings)
        with pytest.raises(ConfigError, match=message):
            built(folder, device)

    refused(lambda t: t.pop(name), rf"gate_up_proj from 10 .*1 missing \(such as {name}\)")
    refused(lambda t: None, r"1 missing \(such as .*experts\.5\.down_proj", num_local_experts=6)
    refused(lambda t: None, r"1 that it does not have \(.*experts\.4\.down", num_local_experts=4)
    refused(lambda t: t.update({name: t[name][:5].clone()}), rf"{name}: the file has shape \[5, 64")
    again = name.removeprefix("model.")
    refused(lambda t: t.update({again: t[name].clone()}), rf"{name} twice")
    fused = "model.layers.1.mlp.experts.gate_up_proj"
    refused(lambda t: t.update({fused: torch.zeros(5, 64, 64)}), rf"{fused} twice")

    def drop(tensors: dict[str, Tensor]) -> None:
        for old in [old for old in tensors if "layers.1" in old and "down_proj" in old]:
            del tensors[old]

    refused(drop, r"1 tensors missing \(such as model\.layers\.1\.mlp\.experts\.down_proj")
    folder = tmp_path / "torn"
    changed(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {"a": {n: t for n, t in tensors.items() if n != name}, "b": {name: tensors[name]}}
    for file, content in parts.items():
        save_file(content, folder / f"{file}.safetensors", metadata={"format": "pt"})
    index = {n: f"{file}.safetensors" for file, content in parts.items() for n in content}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    built(folder, device)
    whole = (folder / "b.safetensors").read_bytes()
    (folder / "b.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ConfigError, match=r"b\.safetensors: damaged"):
        built(folder, device)


def test_a_bias_of_one_row_is_not_a_matrix_of_a_router():
    """Ernie 4.5's routers hold one, [1, experts], beside their matrix."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of("ernie4_5_moe", {}))
    assert Routers(model, TrainConfig()).experts == model.config.moe_num_experts


@pytest.mark.parametrize(
    ("capability", "dtype", "slow"),
    [
        ((9, 0), torch.bfloat16, False),
        ((10, 3), torch.bfloat16, False),
        ((9, 0), torch.float32, True),
        ((8, 0), torch.bfloat16, True),
        ((12, 0), torch.bfloat16, True),
    ],
)
def test_the_header_names_gpus_that_multiply_expert_by_expert(
    tiny_model, device, monkeypatch, capability, dtype, slow
):
    model, _ = built(tiny_model("qwen3_moe"), device)
    assert describe_experts(model, torch.device("cpu"), dtype) == "grouped_mm"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    said = describe_experts(model, torch.device("cuda"), dtype)
    assert said.startswith("grouped_mm") and ("expert by expert" in said) == slow
    dense, _ = built(tiny_model("llama"), device)
    assert describe_experts(dense, torch.device("cuda"), dtype) == ""
