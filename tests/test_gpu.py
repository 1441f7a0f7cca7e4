"""What only a GPU can show: attention kernels agree, a step does not wait for the device, layers
are compiled once, and a run resumes bitwise, compiled (the default here) and not."""

import json
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from adaptsft.data.documents import Documents
from adaptsft.errors import ConfigError
from adaptsft.model import attention
from adaptsft.statistics.step import LOGIT_RANGE, histogram_quantile
from adaptsft.train import train
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


def test_quantiles_of_counts_are_the_hosts_also_in_deterministic_mode():
    """A floating-point cumsum on the device would be an error there."""
    counts = torch.randint(0, 1000, (2, 256), generator=torch.Generator().manual_seed(0)).double()
    torch.use_deterministic_algorithms(True)
    try:
        found = histogram_quantile(counts.cuda(), 0.3, LOGIT_RANGE).cpu()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found, histogram_quantile(counts, 0.3, LOGIT_RANGE))


def test_steps_between_two_reads_do_not_wait_for_the_device(tmp_path, tiny_model):
    """Starting, reading the metrics and saving wait, steps do not: a run of three times as many
    waits no more often."""
    model, waits = tiny_model("llama", tied=False), {}
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


@pytest.mark.parametrize("checkpointing", ["none", "full", "per_op"])
def test_layers_are_compiled_once_and_learn_what_eager_ones_do(tmp_path, tiny_model, checkpointing):
    """By default, with whichever of flash and varlen is there; eager differs by bf16's rounding."""
    model = tiny_model("llama", tied=False)
    settings = {"train__activation_checkpointing": checkpointing, "log__every": 1}
    plain = small_config(tmp_path, model, "plain", **settings, train__compile=False)
    train(plain)
    config = small_config(tmp_path, model, "compiled", **settings)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    train(config)
    chosen = json.loads((Path(config.run_dir) / "environment.json").read_text())["chosen"]
    assert chosen["compile"] == "on, 1 kind of layer" and chosen["attention"] != "sdpa"
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2, "one on meta, one of six steps of two layers"
    assert not counters["graph_break"]
    for ours, theirs in zip(metrics_of(config), metrics_of(plain), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.1)


ADAPTERS = {"model__lora__rank": 4, "model__lora__dropout": 0.1}
EAGER = {"train__compile": False}


@pytest.mark.parametrize(
    "settings",
    [{}, ADAPTERS, EAGER, ADAPTERS | EAGER | {"model__lora__use_dora": True}],
    ids=["all weights", "adapters", "all weights, eager", "DoRA, eager"],
)
def test_resumed_on_a_gpu_is_bitwise_the_same(tmp_path, tiny_model, settings):
    model = tiny_model("llama", tied=False)
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
