"""What only a GPU can show: attention kernels agree, a step does not wait for the device, layers
are compiled once, and a run resumes bitwise, compiled (the default here) and not."""

import gc
import json
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from adaptsft.analysis import fit
from adaptsft.analysis.trace import trace
from adaptsft.data.documents import Documents
from adaptsft.distributed.ranks import device_mesh, process_group
from adaptsft.errors import ConfigError
from adaptsft.evals.backends.decode import choose
from adaptsft.evals.protocol import Sampling
from adaptsft.model import attention
from adaptsft.model.build import build_model
from adaptsft.model.fsdp import before_micro_batch
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.build import NLL
from adaptsft.statistics.step import LOGIT_RANGE, histogram_quantile
from adaptsft.train import train
from adaptsft.training.optim import build_optimizer, clipped, guarded_step
from tests.model.batches import packed_batch
from tests.runs import metrics_of, saved_state, small_config

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", ["flash", "varlen"])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_backends_agree_on_a_pack(backend, window):
    device = torch.device("cuda")
    try:
        attention.choose(backend, device, torch.bfloat16, LlamaConfig(head_dim=64))
    except ConfigError as error:
        pytest.skip(str(error))
    documents = Documents.build(
        torch.tensor([0, 7, 40, 41, 64], dtype=torch.int32), with_buckets=True
    ).to(device)
    generator = torch.Generator(device).manual_seed(0)
    query = torch.randn(64, 4, 64, generator=generator, device=device)
    key, value = (torch.randn(64, 2, 64, generator=generator, device=device) for _ in range(2))
    expected = attention._sdpa(query, key, value, documents, 0.125, window, None, 0.0)
    half = [tensor.bfloat16() for tensor in (query, key, value)]
    out = attention._BACKENDS[backend](*half, documents, 0.125, window, None, 0.0)
    assert (out.float() - expected).abs().max() < 3e-2


@pytest.mark.parametrize("backend", ["flash", "varlen"])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_sinks_have_the_gradients_of_sdpa(backend, window):
    device = torch.device("cuda")
    try:
        attention.choose(backend, device, torch.bfloat16, LlamaConfig(head_dim=64), sinks=True)
    except ConfigError as error:
        pytest.skip(str(error))
    documents = Documents.build(
        torch.tensor([0, 7, 40, 41, 64], dtype=torch.int32), with_buckets=True
    ).to(device)
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(64, 4, 64), (64, 2, 64), (64, 2, 64), (4,), (64, 4, 64)]
    *inputs, grad = (torch.randn(shape, generator=generator, device=device) for shape in shapes)
    found = []
    for name, dtype in (("sdpa", torch.float32), (backend, torch.bfloat16)):
        given = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs[:3]]
        sinks = inputs[3].clone().requires_grad_()
        out = attention._BACKENDS[name](*given, documents, 0.125, window, None, 0.0, sinks)
        out.backward(grad.to(dtype))
        found.append([out.detach(), *(tensor.grad for tensor in (*given, sinks))])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert (ours.float() - theirs).norm() < 2e-2 * theirs.norm()


def test_quantiles_of_counts_are_the_hosts_also_in_deterministic_mode():
    """A floating-point cumsum on the device would be an error there."""
    counts = torch.randint(0, 1000, (2, 256), generator=torch.Generator().manual_seed(0)).double()
    torch.use_deterministic_algorithms(True)
    try:
        found = histogram_quantile(counts.cuda(), 0.3, LOGIT_RANGE).cpu()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found, histogram_quantile(counts, 0.3, LOGIT_RANGE))


def test_tokens_are_drawn_in_deterministic_mode_too():
    logits = torch.randn(4, 1000, device="cuda")
    uniforms = torch.rand(4, dtype=torch.float64, device="cuda")
    for top_p in (1.0, 0.9):
        params = Sampling(temperature=1.0, top_p=top_p)
        expected = choose(logits, params, uniforms)
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.equal(choose(logits, params, uniforms), expected)
        finally:
            torch.use_deterministic_algorithms(False)


DENSE_AND_MIXTURE = ("llama", "qwen3_moe")


@pytest.mark.parametrize("arch", DENSE_AND_MIXTURE)
def test_steps_between_two_reads_do_not_wait_for_the_device(tmp_path, tiny_model, arch):
    """Starting, reading the metrics and saving wait, steps do not: a run of three times as many
    waits no more often."""
    if arch == "qwen3_moe" and torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("torch multiplies expert by expert here, and waits for their sizes")
    model, waits = tiny_model(arch, tied=False), {}
    adaptive = {"controller__name": "auto", "objective__exempt": "special"}
    for steps in (10, 30):
        length = {"train__max_steps": steps, "log__every": steps, "checkpoint__every": 0}
        config = small_config(tmp_path, model, f"of_{steps}_steps", **length, **adaptive)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train(config)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits[steps] = [
            f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)
        ]
    assert 0 < len(waits[30]) <= len(waits[10]), Counter(waits[30]) - Counter(waits[10])
    assert metrics_of(config)[-1]["nll"] < metrics_of(config)[0]["nll"]


@pytest.mark.parametrize("arch", DENSE_AND_MIXTURE)
def test_layers_are_compiled_once_and_learn_what_eager_ones_do(tmp_path, tiny_model, arch):
    """By default, with whichever of flash and varlen is there; eager differs by bf16's rounding.
    With recomputation: those that resume, below, have none."""
    model = tiny_model(arch, tied=False)
    settings = {"train__activation_checkpointing": "per_op", "log__every": 1}
    plain = small_config(tmp_path, model, "plain", **settings, train__compile=False)
    train(plain)
    config = small_config(tmp_path, model, "compiled", **settings)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    train(config)
    chosen = json.loads((Path(config.run_dir) / "environment.json").read_text())["chosen"]
    assert chosen["compile"] == "on, 1 kind of layer" and chosen["attention"] != "sdpa"
    counters = torch._dynamo.utils.counters
    # one on meta, one of six steps of two layers, and one of the forward that counts choices
    assert counters["stats"]["unique_graphs"] == (2 if arch == "llama" else 3)
    assert not counters["graph_break"]
    for ours, theirs in zip(metrics_of(config), metrics_of(plain), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.1)


@pytest.mark.parametrize("compiled", [False, True])
def test_fp8_products_learn_what_bf16_does(tmp_path, tiny_model, compiled):
    """The runs differ by e4m3's rounding, a few percent of each product's terms."""
    model, rows = tiny_model("llama", hidden=256, heads=4, tied=False), {}
    settings = {"log__every": 1, "train__compile": compiled, "train__lr": 1e-3}
    for name in ("none", "rowwise"):
        config = small_config(tmp_path, model, name, **settings, model__fp8=name)
        try:
            train(config)
        except ConfigError as error:
            pytest.skip(str(error))
        rows[name] = metrics_of(config)
    for ours, theirs in zip(rows["rowwise"], rows["none"], strict=True):
        assert ours["loss"] != theirs["loss"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.1)


@pytest.mark.parametrize("reshard", ["always", "never"])
def test_a_step_takes_the_memory_that_is_planned(tmp_path, tiny_model, reshard):
    """Of two micro-batches of 8,192 tokens, in a model of 100 M parameters."""
    model = tiny_model("llama", hidden=1024, layers=8, heads=16)
    shape = {"data__max_length": 2048, "train__micro_batch_size": 4, "train__compile": False}
    config = small_config(tmp_path, model, train__reshard=reshard, **shape)
    gc.collect()
    torch.cuda.empty_cache()
    with process_group("cuda") as device:
        before = torch.cuda.memory_allocated()
        pretrained = load_pretrained(config.model)
        built = build_model(config.model, config.train, pretrained, device_mesh(device, 1), device)
        optimizer = build_optimizer(built, config.train)
        batch = packed_batch([[2048]] * 4, pretrained.config.vocab_size).to(device)
        for _ in range(2):  # the first one makes AdamW's moments
            torch.cuda.reset_peak_memory_stats()
            for last in (False, True):
                before_micro_batch(built, config.train, last)
                loss, _, _ = built.token_loss(batch, NLL, None, 1.0)
                loss.backward()
            _, divisor = clipped(built, torch.ones((), device=device), 1.0)
            guarded_step(optimizer, 1e-3, torch.zeros((), device=device), divisor)
        used = torch.cuda.max_memory_allocated() - before
    planned = trace(config, AutoConfig.from_pretrained(model), True, 1, 2).memory.peak
    assert 0.85 * planned < used < 1.05 * planned, f"{used / planned:.3f} of the estimate"


def test_what_auto_becomes_fits(tmp_path, tiny_model, monkeypatch):
    """Into a GPU of 4 GiB, as far as it knows."""
    monkeypatch.setattr(fit, "memory_of", lambda _: 4 * fit.GIB)
    model = tiny_model("llama", hidden=1024, layers=8, heads=16)
    auto = {"train__micro_batch_size": "auto", "train__reshard": "auto"}
    config = small_config(
        tmp_path, model, **auto, train__global_batch_size=256, data__packing=False
    )
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(config)
    used = torch.cuda.max_memory_allocated() - before
    assert config.train.micro_batch_size > 1 and used < 1.05 * fit.USABLE * 4 * fit.GIB


def test_blocks_that_stay_whole_change_no_bit(tmp_path, tiny_model):
    model, deterministic = tiny_model("llama", tied=False), {"train__deterministic": True}
    for reshard in ("always", "never"):
        train(small_config(tmp_path, model, reshard, train__reshard=reshard, **deterministic))
    always, never = (
        saved_state(tmp_path / name / "checkpoints" / "step_00000006")
        for name in ("always", "never")
    )
    assert all(torch.equal(tensor, never[name]) for name, tensor in always.items())


ADAPTERS = {"model__lora__rank": 4, "model__lora__dropout": 0.1}
EAGER = {"train__compile": False}


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("llama", {}),
        ("llama", EAGER),
        ("llama", ADAPTERS | EAGER | {"model__lora__use_dora": True}),
        ("qwen3_moe", {}),
    ],
    ids=["all weights", "all weights, eager", "DoRA, eager", "a mixture"],
)
def test_resumed_on_a_gpu_is_bitwise_the_same(tmp_path, tiny_model, arch, settings):
    model = tiny_model(arch, tied=False)
    settings = settings | {"train__deterministic": True}
    whole = small_config(tmp_path, model, "whole", **settings)
    train(whole)
    again = small_config(tmp_path, model, "again", **settings)
    again.resume = str(Path(whole.run_dir) / "checkpoints" / "step_00000003")
    torch.compiler.reset()
    train(again)
    assert metrics_of(again) == metrics_of(whole)[3:]
    last = saved_state(Path(whole.run_dir) / "checkpoints" / "step_00000006")
    for name, tensor in saved_state(Path(again.run_dir) / "checkpoints" / "step_00000006").items():
        assert torch.equal(tensor, last[name]), name
