"""What is trained, in which precision, and what recomputation changes: nothing."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.errors import ConfigError
from adaptsft.train import train
from tests.runs import saved_state, small_config


def test_frozen_parameters_do_not_move_and_added_tokens_start_at_the_mean(tmp_path, tiny_model):
    source = tiny_model("qwen2", tied=False)
    config = small_config(
        tmp_path,
        source,
        model__freeze=["embed_tokens", r"layers\.0\."],
        model__add_tokens=["<think>", "</think>"],
        train__weight_decay=0.0,
    )
    train(config)
    before = AutoModelForCausalLM.from_pretrained(source).state_dict()
    final = Path(config.run_dir) / "final"
    after = AutoModelForCausalLM.from_pretrained(final).state_dict()
    tokenizer = AutoTokenizer.from_pretrained(final)
    known = len(AutoTokenizer.from_pretrained(source))
    assert tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) == [known, known + 1]
    embedding = after["model.embed_tokens.weight"]
    assert torch.equal(embedding[:known], before["model.embed_tokens.weight"][:known])
    mean = before["model.embed_tokens.weight"][:known].mean(0)
    assert torch.allclose(embedding[known : known + 2], mean.expand(2, -1), atol=1e-7)
    for name, tensor in after.items():
        if "layers.0." in name:
            assert torch.equal(tensor, before[name]), name
    trained = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(after[trained], before[trained])
    with pytest.raises(ConfigError, match="matches no parameter"):
        train(small_config(tmp_path, source, "typo", model__freeze=["embeding"]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model):
    """The figures of a short run of one layer, with these settings."""
    folder, model = tmp_path_factory.mktemp("build"), tiny_model("llama", tied=False, layers=1)
    return lambda name, **settings: train(
        small_config(folder, model, name, train__max_steps=2, **settings)
    )


@pytest.fixture(scope="module")
def plain(trained):
    return trained("plain")


@pytest.mark.parametrize(
    "setting",
    [
        {"train__activation_checkpointing": "full"},
        {"train__activation_checkpointing": "per_op"},
    ],
    ids=str,
)
def test_recomputation_changes_nothing(trained, plain, setting, request):
    other = trained(request.node.callspec.id, **setting)
    assert other["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert other["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


def test_bf16_compute_keeps_fp32_masters_and_optimizer_state(tmp_path, tiny_model):
    model, steps = tiny_model("llama", tied=False), {"train__max_steps": 2}
    exact = train(small_config(tmp_path, model, "fp32", **steps))
    config = small_config(tmp_path, model, "bf16", model__compute_dtype="bf16", **steps)
    half = train(config)
    assert half["loss"] != exact["loss"]
    assert half["loss"] == pytest.approx(exact["loss"], rel=2e-2)
    state = saved_state(Path(config.run_dir) / "checkpoints" / "step_00000002")
    dtypes = {tensor.dtype for name, tensor in state.items() if "tensors" not in name}
    assert dtypes == {torch.float32}
