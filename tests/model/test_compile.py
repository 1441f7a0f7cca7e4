"""Layers are compiled once, whatever the documents of a batch are, and nothing else changes."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from transformers import AutoConfig

from adaptsft.config.load import read_config
from adaptsft.config.schema import ModelConfig, TrainConfig
from adaptsft.data.collator import Batch
from adaptsft.distributed.ranks import device_mesh
from adaptsft.errors import ConfigError
from adaptsft.model import compile
from adaptsft.model.attention import HF_ATTENTION_NAMES
from adaptsft.model.build import build_model
from adaptsft.model.check import batch_of
from adaptsft.model.fsdp import evaluating
from adaptsft.model.language import causal_lm
from adaptsft.model.pretrained import load_pretrained
from adaptsft.model.router import Routers
from adaptsft.objectives.build import NLL
from adaptsft.train import train
from tests.model import document_kernels
from tests.model.batches import Operators, packed_batch
from tests.model.random_models import OWN_CODE, write_model_with_code, write_random_model
from tests.model_types.variants import config_of, variants
from tests.runs import PROCESSES, metrics_of, saved_state, small_config

# one shape; the longest is rounded up to 128 in the first and to 256 in the others
PACKS = ([[100, 90, 10]], [[150, 50]], [[1, 1, 3, 195]])
CHECKPOINTING = ("none", "full", "per_op")


def built(folder: Path, device: torch.device, packing: bool = True, **train: Any) -> Any:
    config = ModelConfig(path=str(folder))
    pretrained, mesh = load_pretrained(config), device_mesh(device, 1)
    return build_model(config, TrainConfig(**train), pretrained, mesh, device, 0, packing)


def trained(model: Any, batch: Batch) -> list[torch.Tensor]:
    """The loss of a batch and its gradients."""
    model.zero_grad()
    loss, _, _ = model.token_loss(batch, NLL, None, 1.0)
    loss.backward()
    gradients = [parameter.grad.to_local() for parameter in model.parameters()]
    return [loss.detach(), *gradients]


def packs(vocabulary: int) -> list[Batch]:
    """As the loader makes them for flash and varlen: without buckets."""
    found = []
    for lengths in PACKS:
        batch = packed_batch(lengths, vocabulary)
        empty = torch.empty(0, dtype=torch.int64)
        documents = batch.documents._replace(buckets=(), inverse=empty)
        found.append(dataclasses.replace(batch, documents=documents))
    return found


# the other pairs by `make nightly`
FEW = {("varlen", "none"), ("varlen", "per_op"), ("flash", "full"), ("eager", "full")}


def few_or_nightly(*backends: str) -> list[Any]:
    pairs = itertools.product(backends, CHECKPOINTING)
    return [
        pytest.param(*pair, id="-".join(pair), marks=[] if pair in FEW else pytest.mark.nightly)
        for pair in pairs
    ]


@pytest.mark.parametrize(("backend", "checkpointing"), few_or_nightly("varlen", "flash"))
def test_packs_of_any_documents_are_one_graph(
    tiny_model, device, monkeypatch, backend, checkpointing
):
    document_kernels.use(backend, monkeypatch, "aot_eager")
    folder, settings = tiny_model("llama", tied=False), {"activation_checkpointing": checkpointing}
    plain, model = (built(folder, device, **settings, compile=on) for on in (False, True))
    assert model.compilation.on and model.compilation.whole and not plain.compilation.on
    torch._dynamo.utils.counters.clear()
    for batch in packs(model.config.vocab_size):
        expected, runs = trained(plain, batch), []
        for one in (plain, model):
            document_kernels.calls.clear()
            found = trained(one, batch)
            runs.append(dict(document_kernels.calls))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        # recomputed by full alone, compiled or not
        forwards = 4 if checkpointing == "full" else 2
        assert runs == [{"forward": forwards, "backward": 2}] * 2
        assert document_kernels.graphs() == 1, "of two layers, in one step and the next"


@pytest.mark.parametrize(("checkpointing", "products"), [("none", 6), ("per_op", 6), ("full", 8)])
def test_what_experts_multiply_is_kept_like_other_products(
    tiny_model, device, checkpointing, products
):
    """Of a layer: up and down, each with a gradient of its input and of its weights."""
    folder = tiny_model("qwen3_moe", tied=False, layers=1)
    model = built(folder, device, activation_checkpointing=checkpointing)
    batch = packed_batch([[16, 9]], model.config.vocab_size)
    model.routers.begin(True, batch)
    with Operators() as operators:
        trained(model, batch)
    assert sum("grouped_mm" in name for name, _ in operators.seen) == products


@pytest.mark.parametrize("checkpointing", ["full", "per_op"])
def test_compiled_the_choice_of_experts_is_not_made_again(checkpointing):
    """By other kernels a near tie may turn, and gradients be those of experts never seen."""
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph)

    partitioned = {"partition_fn": min_cut_rematerialization_partition}
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, **partitioned)
    layer = causal_lm(config_of("qwen3_moe", {}), "sdpa", torch.float32).model.layers[0].mlp
    make = functools.partial(torch.compile, backend=backend, fullgraph=True)
    compile.prepare_block(layer, TrainConfig(activation_checkpointing=checkpointing), make)
    layer(torch.randn(1, 16, 64, requires_grad=True)).sum().backward()
    choices = [sum("topk" in name for name in graph) for graph in graphs]
    assert choices == [1, 0], "forward and backward"


def test_layers_of_a_mixture_are_one_kind_however_many(monkeypatch):
    """Though each has a router whose loads are recorded."""
    monkeypatch.setattr(compile, "has_triton", lambda: True)
    config = config_of("qwen3_moe", variants()["qwen3_moe"][1] | {"num_hidden_layers": 3})
    with torch.device("meta"):
        model = causal_lm(config, HF_ATTENTION_NAMES["varlen"], torch.float32)
    routers, cuda = Routers(model, TrainConfig()), torch.device("cuda")
    found = compile.choose_compilation(model, TrainConfig(), "varlen", cuda, True, routers)
    assert routers.layers == 3 and str(found) == "on, 1 kind of layer"


@pytest.mark.nightly
@pytest.mark.parametrize(
    "model_type",
    ["gpt_oss", "qwen3_moe", "mixtral", "deepseek_v3", "mimo_v2_flash", "glm4_moe_lite"],
)
def test_mixtures_of_experts_learn_what_they_learn_eagerly(
    tmp_path, device, monkeypatch, model_type
):
    """With attention sinks, latent attention, and routers that are recorded."""
    document_kernels.use("varlen", monkeypatch, "aot_eager")
    folder = write_random_model(tmp_path / "model", config_of(*variants()[model_type]))
    plain, model = (built(folder, device, compile=on) for on in (False, True))
    assert model.compilation.whole
    torch._dynamo.utils.counters.clear()
    batch, runs = packs(model.config.vocab_size)[0], []
    for one in (plain, model):
        one.routers.begin(True, batch)
        loss, _, _ = one.token_loss(batch, NLL, None, 1.0)
        one.routers.tokens = len(batch.ids.flatten())
        one.routers.add_loss(loss).backward()
        gradients = [p.grad.to_local() for p in one.parameters() if p.grad is not None]
        runs.append([loss.detach(), one.routers.sums, *gradients])
    assert len(runs[0]) == len(runs[1])
    assert document_kernels.graphs() == model.compilation.kinds
    for ours, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_run_of_a_mixture_is_compiled_as_a_whole(tmp_path, tiny_model, monkeypatch):
    """After the check of its first batch, which asks transformers for the routers' loss, and though
    its configuration asks for what layers return: by hooks, which are in no graph."""
    document_kernels.use("varlen", monkeypatch, "eager")
    asked = {"output_router_logits": True, "output_hidden_states": True}
    model = tiny_model("qwen3_moe", tied=False, **asked)
    config = small_config(tmp_path, model, train__compile=True, train__max_steps=2)
    torch._dynamo.utils.counters.clear()
    train(config)
    assert document_kernels.graphs() == 3, "on meta, of the forward that counts, and of steps"
    final = json.loads((Path(config.run_dir) / "final" / "config.json").read_text())
    assert asked.items() <= final.items()


def test_layers_of_two_kinds_and_evaluation_have_graphs_of_their_own(
    tiny_model, device, monkeypatch
):
    document_kernels.use("varlen", monkeypatch, "eager")
    model = built(tiny_model("gemma3", tied=True, layers=3), device, compile=True)
    torch._dynamo.utils.counters.clear()
    batches = packs(model.config.vocab_size)
    for expected in (2, 4, 4):  # every other layer has a window
        for batch in batches:
            if expected == 2:
                trained(model, batch)
            else:
                with torch.no_grad(), evaluating(model):
                    model.token_loss(batch, NLL, None, 1.0)
        assert document_kernels.graphs() == expected


@pytest.mark.parametrize(("backend", "checkpointing"), few_or_nightly("eager"))
def test_padded_batches_of_any_size_are_one_graph(
    tiny_model, device, monkeypatch, backend, checkpointing
):
    document_kernels.use(backend, monkeypatch, "eager")
    settings = {"activation_checkpointing": checkpointing, "packing": False}
    folder = tiny_model("llama", tied=False, layers=1)
    plain, model = (built(folder, device, **settings, compile=on) for on in (False, True))
    assert model.compilation.dynamic
    for lengths in ([9, 7], [30, 5, 2], [6, 5, 4, 3], [3, 3]):
        batch = batch_of([[torch.arange(3, 3 + length)] for length in lengths], False)
        for ours, theirs in zip(trained(model, batch), trained(plain, batch), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert document_kernels.graphs() == 1, "that for a single example is another"


def test_more_graphs_than_can_be_are_an_error_not_a_silent_eager(tiny_model, device, monkeypatch):
    document_kernels.use("varlen", monkeypatch, "eager")
    monkeypatch.setattr(compile, "GRAPHS", 1)
    limit = torch._dynamo.config.recompile_limit
    try:
        model = built(tiny_model("llama", tied=False, layers=1), device, compile=True)
        trained(model, packed_batch([[16]], model.config.vocab_size))
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            trained(model, packed_batch([[24]], model.config.vocab_size))
    finally:
        torch._dynamo.config.recompile_limit = limit


BREAKING = OWN_CODE.replace(
    "        batch, length, _", "        torch._dynamo.graph_break()\n        batch, length, _"
).replace("import torch.nn.functional as F", "import torch\nimport torch.nn.functional as F")


def chosen(
    folder: Path, backend: str = "varlen", device: str = "cuda", packing: bool = True, **train: Any
) -> compile.Compilation:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with torch.device("meta"):
        model = causal_lm(config, HF_ATTENTION_NAMES[backend], torch.float32, True)
    settings = TrainConfig(**train)
    return compile.choose_compilation(model, settings, backend, torch.device(device), packing)


def test_auto_never_fails_and_says_why_it_is_off(tiny_model, tmp_path, monkeypatch):
    llama = tiny_model("llama", tied=False)
    broken = write_model_with_code(tmp_path / "own", BREAKING)
    assert "Triton" in str(chosen(llama))
    monkeypatch.setattr(compile, "has_triton", lambda: True)
    for checkpointing in CHECKPOINTING:
        assert str(chosen(llama, activation_checkpointing=checkpointing)) == "on, 1 kind of layer"
        off = chosen(llama, "sdpa", activation_checkpointing=checkpointing)
        assert "sdpa" in str(off) and not off.on
    assert str(chosen(llama, device="cpu")) == "off (auto, on cpu)"
    assert "data.packing=false" in str(chosen(llama, "eager", packing=False))
    assert str(chosen(llama, compile=False)) == "off (train.compile=false)"
    off = chosen(broken)
    assert not off.on and "graph_break" in off.reason
    windows = tiny_model("gemma3", tied=True, layers=3)
    assert str(chosen(windows, compile=True)) == "on, 2 kinds of layer"
    monkeypatch.setattr(compile, "KINDS", 1)
    assert str(chosen(windows)).startswith("off (auto, with 2 kinds")
    assert str(chosen(broken, "sdpa", compile=True)) == "on"
    with pytest.raises(ConfigError, match=r"OwnForCausalLM .*graph_break.*train\.compile=false"):
        chosen(broken, compile="true")
    with pytest.raises(ConfigError, match="has no effect beside"):
        chosen(llama, "sdpa", compile=True, activation_checkpointing="full")
    hybrid = write_random_model(tmp_path / "hybrid", config_of(*variants()["lfm2"]))
    assert "run outside of graphs" in str(chosen(hybrid))
    assert str(chosen(hybrid, compile=True)) == "on"


def killed_run(config: Any, calls: int) -> None:
    from tests import runs

    with pytest.MonkeyPatch.context() as monkeypatch:
        document_kernels.use("varlen", monkeypatch)
        runs._run(config, calls)


def test_killed_and_resumed_a_compiled_run_is_bitwise_the_uninterrupted_one(
    tmp_path, tiny_model, monkeypatch, capsys
):
    model = tiny_model("llama", tied=False, layers=1)
    settings = {"objective__name": "nll_then_killed", "train__max_steps": 4, "log__every": 1}
    settings |= {"checkpoint__every": 1}
    whole, killed = (
        small_config(tmp_path, model, name, **settings, train__compile=True)
        for name in ("whole", "killed")
    )
    document_kernels.use("varlen", monkeypatch)
    result = train(whole)
    printed = capsys.readouterr().err
    assert "train.compile: on, 1 kind of layer; packs of 128 tokens, " in printed
    seconds = float(printed.split("compiled in ")[1].split()[0])
    first = json.loads((Path(whole.run_dir) / "metrics.jsonl").read_text().splitlines()[0])
    assert first["seconds"] < seconds, "compiling is not counted as training"

    process = PROCESSES.Process(target=killed_run, args=(killed, 9))
    process.start()
    process.join(300)
    assert process.exitcode == -9 and not (Path(killed.run_dir) / "final").exists()
    torch.compiler.reset()
    train(killed)
    assert metrics_of(killed) == metrics_of(whole)
    last = saved_state(Path(whole.run_dir) / "checkpoints" / "step_00000004")
    for name, tensor in saved_state(Path(killed.run_dir) / "checkpoints" / "step_00000004").items():
        assert torch.equal(tensor, last[name]), name

    capsys.readouterr()
    eager = small_config(tmp_path, model, "eager", **settings)
    plain = train(eager)
    assert "train.compile: off (auto, on cpu)\n" in capsys.readouterr().err
    environment = json.loads((Path(eager.run_dir) / "environment.json").read_text())
    assert environment["chosen"]["compile"] == "off (auto, on cpu)"
    assert read_config(Path(eager.run_dir) / "config.yaml").train.compile == "auto"
    assert result["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert result["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
