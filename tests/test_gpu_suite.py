"""The GPU suite without a GPU: scripts, JSON, tables, and runs that fail or hang."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from adaptsft.training.flops import flops_per_token
from tests.conftest import REPO

sys.path += [str(REPO / "benchmarks"), str(REPO / "tools")]

import gpu_tables
import train_step
import train_step_clock
import train_step_settings

FACTS = {"tokens": 100, "target_tokens": 40, "packs": 2, "flops": 1e9}
FACTS |= {"parameters": 2_000_000, "active_parameters": 500_000.0}


def run_of(name, seconds, **changes):
    run = {"name": name, "tokens": [100], "target_tokens": [40], "nll": [5.0, 4.0]}
    run |= {"step_seconds": seconds, "bytes": None, "breakdown": None}
    return run | changes


def commands_of(text: str) -> list[str]:
    """The lines of the blocks that begin with a number, continuations joined."""
    blocks = re.findall(r"```sh\n# [123]\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    return "".join(re.sub(r"\s*\\\n\s*", " ", block) for block in blocks).splitlines()


def test_the_document_gives_the_commands_that_the_suite_runs():
    suite = ["bash", "tools/gpu_suite.sh", "--print"]
    printed = subprocess.run(suite, cwd=REPO, capture_output=True, text=True, check=True).stdout
    lines = [line for line in printed.splitlines() if not line.startswith("#")]
    text = (REPO / "docs" / "performance.md").read_text()
    assert commands_of(text) == lines
    limits = [int(line.split()[3]) for line in lines]
    assert sum(limits[:5]) < 580 and sum(limits[5:7]) < 580 and sum(limits[7:]) < 580
    written = [word for line in lines for word in line.split() if word.endswith(".json")]
    assert sorted(written) == sorted(f"$OUT/{name}" for name in gpu_tables.FILES)
    for name in gpu_tables.FILES:
        assert f"`{name}`" in text, "the table that says which file each table is made from"


def test_the_scripts_take_the_flags_of_the_document():
    for line in commands_of((REPO / "docs" / "performance.md").read_text()):
        words = shlex.split(line.split(" 2>&1 ")[0])
        assert words[:3] == ["timeout", "-k", "10"] and words[4] == "python3"
        script, *flags = words[5:]
        if script == "-m":
            assert flags[0] == "pytest" and "-m gpu" in line
            assert all((REPO / word).is_file() for word in flags if word.endswith(".py"))
            continue
        given = importlib.import_module(Path(script).stem).arguments().parse_args(flags)
        assert given.device == "cuda"
        if script == "benchmarks/train_step.py":
            assert set(given.only.split(";")) <= {*train_step_settings.CANDIDATES, "TRL"}


def test_a_part_that_takes_longer_than_the_budget_is_ended_and_the_next_one_runs(tmp_path):
    command = ["bash", "tools/gpu_suite.sh", str(tmp_path), "--rehearse", "--budget", "1"]
    command += ["--parts", "smoke,masks"]
    environment = os.environ | {"PYTHON": "sleep"}  # `sleep tools/gpu_smoke.py` fails at once
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "failed: smoke masks" in done.stdout
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    environment = os.environ | {"PYTHON": str(slow)}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and re.search(r"== smoke +[12] s  FAILED", done.stdout)
    assert "== masks (at most 1 s)" in done.stdout, "of another command, with a budget of its own"


@pytest.mark.nightly
def test_the_rehearsal_works_to_the_tables(tmp_path, monkeypatch):
    parts = "step,tune_fp32"
    command = ["bash", "tools/gpu_suite.sh", str(tmp_path), "--rehearse", "--parts", parts]
    # compiling takes half a minute, and is left to the suite's own rehearsal
    environment = os.environ | {"PYTHON": sys.executable, "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "train_step.json").read_text())
    for name in ("NLL", "adaptive", "adaptive, compiled"):
        assert all(run["tokens"] == [result["step"]["tokens"]] for run in result["runs"][name])
    assert all(run["nll"][-1] < run["nll"][0] for run in result["runs"]["NLL"])
    assert len(result["adaptive / NLL"]["pairs"]) == 3
    assert sum(result["runs"]["adaptive"][-1]["breakdown"].values()) == pytest.approx(1)
    assert "adaptive / NLL, time of a step" in (tmp_path / "suite.log").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("suite.log", "train_step.json", "tune_fp32.json", "trace_step.json.gz"),
    }
    # in this process, which has imported all that they need
    masks = ["--shape", "256", "64", "1000", "--mask", "0.5", "--rounds", "2"]
    masks += ["--only", "bare,ours,naive,liger,cce", "--out", str(tmp_path / "loss_masks.json")]
    profile = ["--shape", "256", "64", "1000", "--logits", "bf16"]
    profile += ["--trace", str(tmp_path / "trace_bf16.json.gz")]
    for name, flags in (("loss_kernels", masks), ("profile_kernels", profile)):
        monkeypatch.setattr(sys, "argv", [name, "--device", "cpu", *flags])
        assert not importlib.import_module(name).main()

    script = [sys.executable, "benchmarks/gpu_tables.py", str(tmp_path)]
    text = subprocess.run(script, cwd=REPO, capture_output=True, text=True, check=True).stdout
    step = 1e3 * float(np.median(result["runs"]["adaptive, compiled"][0]["step_seconds"]))
    lines = text.splitlines()
    compiled = next(line for line in lines if line.startswith("| adaptive, compiled |"))
    assert f"{step:.1f}" in compiled.split(" | ")
    profile = json.loads((tmp_path / "profile_bf16.json").read_text())
    assert f"| all | {profile['ms']:.3f} |" in text
    tuned = json.loads((tmp_path / "tune_fp32.json").read_text())["row_kernels"]
    fastest = min(found["ms"] for found in tuned if found["kernel"] == "row_pass")
    assert f"{fastest:.4f}" in next(line for line in lines if "| row_pass |" in line)
    for name in ("loss_dense.json", "train_step_bf16.json", "tune_bf16.json"):
        assert f"not measured ({name} is not there)" in text
    assert "liger-kernel: not measured" in text and text.startswith("Not measured on a GPU")
    assert str(tmp_path) not in text
    before = (REPO / "docs" / "performance.md").read_text()
    refused = subprocess.run([*script, "--publish"], cwd=REPO, capture_output=True, text=True)
    assert refused.returncode and "was not measured on a GPU" in refused.stderr
    assert (REPO / "docs" / "performance.md").read_text() == before


def test_tables_of_a_gpu_are_put_between_the_marks(tmp_path, monkeypatch):
    machine = {"gpu": "NVIDIA H200", "cuda": "13.0"}
    environment = {"machine": machine, "versions": {"torch": "2.11.0", "flash-attn": None}}
    environment["command"] = "python benchmarks/loss_kernels.py --out /scratch/x/loss_dense.json"
    ours = {"ms": 70.25, "ratio": 1.0721, "bytes": 2_500_000_000, "syncs": 0, "repeat": True}
    ours |= {"dX": 2.2e-3, "dX*": 2.4e-3, "dW": 2.9e-3}
    candidates = {"ours": ours, "liger": {"failed": "OutOfMemoryError: 140 GB"}}
    case = {"N,D,V": [8, 4, 16], "mask": 0.0, "clocks": "1980 MHz", "candidates": candidates}
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "loss_dense.json").write_text(
        json.dumps({"environment": environment, "cases": [case]}),
    )
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{gpu_tables.BEGIN}\nold\n{gpu_tables.END}\nafter\n")
    monkeypatch.setattr(gpu_tables, "DOCUMENT", document)
    monkeypatch.setattr(gpu_tables, "RESULTS", tmp_path / "results")
    assert gpu_tables.main([str(folder), "--publish"]) == 0
    text = document.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "old" not in text
    assert "Measured on NVIDIA H200 (CUDA 13.0)." in text and "1980 MHz" in text
    assert "| ours | 70.25 | 1.072 | 2.50 | 0 | 2.2e-03 | 2.4e-03 | 2.9e-03 | yes |" in text
    assert "| liger | OutOfMemoryError: 140 GB |" in text and "cut-cross-entropy: not" in text
    published = json.loads((tmp_path / "results" / "loss_dense.json").read_text())
    assert published["environment"]["command"].endswith("--out $OUT/loss_dense.json")
    assert published["cases"] == [case]


def test_a_hang_ends_at_the_limit_and_is_reported(tmp_path, capfd):
    setting = train_step_settings.Setting(
        tmp_path, [], "qwen2.5-1.5b", tiny=True, device="cpu", length=256, steps=3
    )
    progress = train_step.Progress(setting, 2, 60.0)
    assert progress.run(["NLL", "adaptive"], 0.1) == [
        {"name": name, "failed": "no result within 0 s"} for name in ("NLL", "adaptive")
    ]
    assert "end of the output of NLL, adaptive" in capfd.readouterr().err


def test_what_failed_is_in_the_table_beside_what_did_not():
    trl = {"name": "TRL", "failed": "OutOfMemoryError: 140 GB"}
    runs = {"NLL": [run_of("NLL", [0.1])], "TRL": [trl]}
    result = {"step": FACTS, "runs": runs, "gemm_tflops": None, "peak_tflops": 989.0}
    result["adaptive / NLL"] = train_step.ratio(runs)
    lines = train_step.table(result).splitlines()
    assert lines[1].startswith("2.00 M parameters, 0.50 M active; every step")
    assert any(line.split()[:2] == ["NLL", "1,000"] for line in lines)
    assert any(line.split() == ["TRL", "OutOfMemoryError:", "140", "GB"] for line in lines)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"tokens": [100, 104]}, "tokens of its steps"),
        ({"target_tokens": [39]}, "target_tokens of its steps"),
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
    assert ratio["mean"] == pytest.approx(1.0)
    assert ratio["standard_error"] == pytest.approx(0.1 / 3**0.5)
    runs["NLL"][1] = {"name": "NLL", "failed": "hung"}
    assert train_step.ratio(runs)["pairs"] == pytest.approx([1.1, 0.9])


def test_the_breakdown_adds_up_where_kernels_overlap():
    def kernel(name, begin, end):
        return {"cat": "kernel", "name": name, "ts": begin, "dur": end - begin}

    flash = "pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, cutlass::bfloat16_t>>"
    events = [
        kernel("nvjet_tst_128x256", 0, 40),
        kernel("ncclDevKernel_ReduceScatter", 20, 60),  # half of it beside the product
        kernel(flash, 60, 70),
        kernel("multi_tensor_apply_kernel<FusedAdamMathFunctor>", 70, 75),
        kernel("row_pass", 75, 80),
        kernel("elementwise_kernel", 80, 85),
        {"cat": "gpu_user_annotation", "name": "FSDP::all_gather", "ts": 0, "dur": 100},
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 100},
    ]
    shares = train_step_clock.breakdown(events, wall=100e-6)
    expected = {"products": 0.4, "attention": 0.1, "loss rows": 0.05, "optimizer": 0.05}
    expected |= {"communication": 0.2, "copies and elementwise": 0.05, "idle": 0.15}
    assert shares == pytest.approx(expected)


@pytest.mark.parametrize("tied", [True, False])
def test_the_operations_of_a_token_are_those_of_its_parameters_and_its_pairs(tied):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "vocab_size": 50}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": tied}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **shape))
    layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
    body, head = layers + 16, 50 * 16
    data = SimpleNamespace(lengths=np.array([10, 30]), target_tokens=np.array([5, 15]))
    expected = 6 * (body * 40 + head * 20) + 12 * 2 * 16 * (10**2 + 30**2) / 2
    assert flops_per_token(model, data) * 40 == pytest.approx(expected)
