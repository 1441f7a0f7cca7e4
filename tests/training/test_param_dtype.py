"""model.param_dtype=bf16, as in the paper's code: what it does to a run, and what it costs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptsft.plan import main as plan_main
from adaptsft.train import train
from adaptsft.training.optim import clipped, guarded_step
from tests.runs import metrics_of, saved_state, small_config
from tests.training.test_normalizer import BF16


@pytest.fixture
def model(tiny_model) -> Path:
    return tiny_model("llama", tied=False)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_masters_gradients_and_moments_are_bf16_and_resume_is_bitwise(tmp_path, model, compute):
    whole = small_config(
        tmp_path, model, "whole", **BF16, model__compute_dtype=compute, checkpoint__every=3
    )
    train(whole)
    checkpoints = Path(whole.run_dir) / "checkpoints"
    end = saved_state(checkpoints / "step_00000006")
    for name, tensor in end.items():
        if name.startswith("model/") or "exp_avg" in name:
            assert tensor.dtype == torch.bfloat16, name
    resumed = small_config(
        tmp_path,
        model,
        "resumed",
        **BF16,
        model__compute_dtype=compute,
        checkpoint__every=3,
        resume=checkpoints / "step_00000003",
    )
    train(resumed)
    again = saved_state(Path(resumed.run_dir) / "checkpoints" / "step_00000006")
    assert again.keys() == end.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in end.items())
    assert metrics_of(resumed) == metrics_of(whole)[3:]
    assert metrics_of(whole)[-1]["nll"] < metrics_of(whole)[0]["nll"] - 0.5, "it learns"
    # in fp32: exactly the masters
    exported = load_file(Path(whole.run_dir) / "final" / "model.safetensors")
    assert all(
        torch.equal(tensor, end[f"model/{name}"].float()) for name, tensor in exported.items()
    )


def test_an_update_below_half_an_ulp_is_lost():
    """AdamW moves by lr a step. Below 1 the neighbours of bf16 lie 2^-8 apart, so that an update
    below 2^-9 is lost to rounding."""
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        for lr in (0.9 * 2**-9, 1.1 * 2**-9):
            weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))
            optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=0.0, fused=True)
            for _ in range(20):
                weight.grad = torch.ones_like(weight)
                guarded_step(optimizer, lr, torch.zeros(()))
            moved[dtype, lr > 2**-9] = 1 - weight.item()
    assert moved[torch.bfloat16, False] == 0.0, "twenty steps, and not one has left a trace"
    assert moved[torch.bfloat16, True] == 20 * 2**-8, (
        "and each of these moved by almost twice as much as it should"
    )
    assert moved[torch.float32, False] == pytest.approx(20 * 0.9 * 2**-9, rel=1e-4)


def test_most_weights_of_a_run_stand_still_at_a_small_learning_rate(tmp_path, model):
    """At lr 1e-5 an update is lost wherever |weight| is above about 2^9 lr = 5e-3; with fp32
    parameters hardly any is."""
    still = {}
    for masters in (False, True):
        settings = {
            "train__lr": 1e-5,
            "train__warmup_ratio": 0.0,
            "train__lr_schedule": "constant",
            "train__max_steps": 3,
            "checkpoint__every": 1,
        }
        config = small_config(
            tmp_path,
            model,
            str(masters),
            model__param_dtype="bf16" if masters else "fp32",
            **settings,
        )
        train(config)
        first, last = (
            saved_state(Path(config.run_dir) / "checkpoints" / f"step_0000000{step}")
            for step in (1, 3)
        )
        names = [name for name in first if name.startswith("model/") and "layers" in name]
        equal = [(first[name] == last[name]).flatten() for name in names]
        still[masters] = float(torch.cat(equal).double().mean())
    assert still[True] > 0.5 and still[False] < 0.05, still


def test_the_norm_of_bf16_gradients_is_fp32():
    """Of 60,300 ones: 245.56, which bf16 rounds to 246."""
    module = torch.nn.Linear(200, 300, dtype=torch.bfloat16)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    norm, _ = clipped(module, torch.ones(()), 1.0)
    assert norm.dtype == torch.float32 and float(norm) == pytest.approx(60_300**0.5, rel=1e-5)


def test_the_plan_names_bf16_and_advises_nothing_that_changes_the_result(tmp_path, model, capsys):
    """Otherwise train.micro_batch_size=1, one micro-batch per step and --gpus 2 would be among the
    advice."""
    data = small_config(tmp_path, model).data
    arguments = [
        f"model.path={model}",
        f"data.path={data.path}",
        f"data.cache_dir={data.cache_dir}",
        f"run_dir={tmp_path / 'p'}",
    ]
    arguments += [
        "data.packing=false",
        "train.global_batch_size=8",
        "train.micro_batch_size=2",
        "train.max_steps=1",
        "train.loss_chunk=64",
    ]
    arguments += ["train.activation_checkpointing=per_op", "train.reduce_every_micro_batch=true"]
    options = [
        "model.param_dtype=bf16",
        "train.loss_reduction=micro_batch",
    ]
    assert plan_main([*arguments, *options, "--gpu-memory", "0.000001"]) == 1
    out = capsys.readouterr().out
    assert "parameters, bf16" in out and "AdamW moments, bf16" in out and "gradients, bf16" in out
    advice = out[out.index("Each of these alone:") :].splitlines()[1:]
    assert [line.split(":")[0].strip() for line in advice] == [
        "train.activation_checkpointing=full"
    ]
