"""The GPU suite without a GPU: its scripts, JSON and tables, and what becomes of runs that fail or hang."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from adaptsft.training.run_folder import flops_per_token
from tests.conftest import REPO

sys.path.append(str(REPO / "benchmarks"))

import train_step
import train_step_runs

FACTS = {"tokens": 100, "supervised": 40, "packs": 2, "flops": 1e9, "parameters": 1000}


def run_of(name, seconds, **changes):
    parts = {
        "tokens": [100],
        "supervised": [40],
        "nll": [5.0, 4.0],
        "step_seconds": seconds,
        "bytes": None,
        "breakdown": None,
    }
    return {"name": name} | parts | changes


@pytest.mark.slow
def test_the_rehearsal_of_a_training_step_works_to_the_end(tmp_path):
    command = ["bash", "tools/gpu_suite.sh", str(tmp_path), "--rehearse", "--parts", "step"]
    done = subprocess.run(
        command,
        cwd=REPO,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "train_step.json").read_text())
    for name in ("NLL", "adaptive"):
        assert all(run["tokens"] == [result["step"]["tokens"]] for run in result["runs"][name])
        assert all(run["nll"][-1] < run["nll"][0] for run in result["runs"][name])
    assert len(result["adaptive / NLL"]["pairs"]) == 3
    assert sum(result["runs"]["adaptive"][-1]["breakdown"].values()) == pytest.approx(1)
    assert "adaptive / NLL, time of a step" in (tmp_path / "suite.log").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "suite.log",
        "train_step.json",
        "trace_step.json.gz",
    }


def test_a_hang_ends_at_the_limit_and_is_told(tmp_path, capfd):
    setting = train_step_runs.Setting(tmp_path, [], tiny=True, device="cpu", length=256, steps=3)
    progress = train_step.Progress(setting, 2, 60.0)
    failed = "no result within 0 s"
    assert progress.run(["NLL", "adaptive"], 0.1) == [
        {"name": "NLL", "failed": failed},
        {"name": "adaptive", "failed": failed},
    ]
    assert "end of the output of NLL, adaptive" in capfd.readouterr().err


def test_what_failed_is_in_the_table_beside_what_did_not():
    runs = {
        "NLL": [run_of("NLL", [0.1])],
        "TRL": [{"name": "TRL", "failed": "OutOfMemoryError: 140 GB"}],
    }
    result = {
        "step": FACTS,
        "runs": runs,
        "gemm_tflops": None,
        "peak_tflops": 989.0,
        "adaptive / NLL": train_step.ratio(runs),
    }
    rows = train_step.table(result).splitlines()
    assert any(row.split()[:2] == ["NLL", "1,000"] for row in rows)
    assert any(row.split() == ["TRL", "OutOfMemoryError:", "140", "GB"] for row in rows)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"tokens": [100, 104]}, "tokens of its steps"),
        ({"supervised": [39]}, "supervised of its steps"),
        ({"nll": [5.0, 5.0]}, "has not fallen"),
        ({"nll": [5.2, 5.1]}, "begins at 5.2"),
    ],
)
def test_a_run_on_other_tokens_or_weights_is_failed(changes, reason):
    facts = dict(FACTS)
    assert "failed" not in train_step.check(run_of("NLL", [0.1]), facts)
    failed = train_step.check(run_of("TRL", [0.1], **changes), facts).get("failed")
    assert (reason is None) == (failed is None) and (reason is None or reason in failed)


def test_the_ratio_is_of_neighbouring_runs_with_its_standard_error():
    times = {
        "NLL": [[0.1, 0.1, 0.9], [0.2, 0.2, 0.2], [0.4, 0.4, 0.4]],
        "adaptive": [[0.11, 0.11, 0.1], [0.2, 0.2, 0.2], [0.36, 0.36, 0.3]],
    }
    runs = {name: [run_of(name, seconds) for seconds in found] for name, found in times.items()}
    ratio = train_step.ratio(runs)
    assert ratio["pairs"] == pytest.approx([1.1, 1.0, 0.9])
    assert ratio["mean"] == pytest.approx(1.0) and ratio["standard_error"] == pytest.approx(
        0.1 / 3**0.5
    )
    runs["NLL"][1] = {"name": "NLL", "failed": "hung"}
    assert train_step.ratio(runs)["pairs"] == pytest.approx([1.1, 0.9])


def test_the_breakdown_adds_up_where_kernels_overlap():
    def kernel(name, begin, end):
        return {"cat": "kernel", "name": name, "ts": begin, "dur": end - begin}

    events = [
        kernel("nvjet_tst_128x256", 0, 40),
        kernel("ncclDevKernel_ReduceScatter", 20, 60),  # half of it beside the product
        kernel(
            "pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, cutlass::bfloat16_t>>",
            60,
            70,
        ),
        kernel("multi_tensor_apply_kernel<FusedAdamMathFunctor>", 70, 75),
        kernel("row_sums", 75, 80),
        kernel("elementwise_kernel", 80, 85),
        {"cat": "gpu_user_annotation", "name": "FSDP::all_gather", "ts": 0, "dur": 100},
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 100},
    ]
    shares = train_step_runs.breakdown(events, wall=100e-6)
    expected = {
        "products": 0.4,
        "attention": 0.1,
        "loss rows": 0.05,
        "optimizer": 0.05,
        "communication": 0.2,
    }
    assert shares == pytest.approx(expected | {"copies and elementwise": 0.05, "idle": 0.15})


@pytest.mark.parametrize("tied", [True, False])
def test_the_trainer_counts_the_operations_of_a_token_as_the_benchmark_does(tied):
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
    }
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("qwen2", **shape, vocab_size=50, tie_word_embeddings=tied)
    )
    body, head = (
        sum(parameter.numel() for parameter in model.model.layers.parameters()) + 16,
        50 * 16,
    )
    data = SimpleNamespace(lengths=np.array([10, 30]), target_tokens=np.array([5, 15]))
    expected = 6 * (body * 40 + head * 20) + 12 * 2 * 16 * (10**2 + 30**2) / 2
    assert flops_per_token(model, SimpleNamespace(data=data)) * 40 == pytest.approx(expected)
