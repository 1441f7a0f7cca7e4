"""The plan past one node: communication, time, what would be faster, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, DeepseekV3Config

from adaptsft.analysis.fit import Choice, with_choice
from adaptsft.analysis.trace import trace
from adaptsft.config.resolve import load_config
from adaptsft.plan import main
from tests.conftest import REPO
from tests.test_plan import arguments


def shape(tmp_path: Path, name: str, **changes: Any) -> str:
    settings = json.loads((REPO / "benchmarks" / "scaling" / f"{name}.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | changes))
    return f"model.path={tmp_path}"


def test_communication_time_and_what_would_be_faster(tmp_path, capsys):
    """Of an 8B shape with few layers, across two nodes with a slow network, where checkpointing is
    not needed."""
    command = [shape(tmp_path, "8b", num_hidden_layers=3), "data.path=absent.jsonl"]
    command += [f"run_dir={tmp_path / 'run'}", "train.activation_checkpointing=full"]
    command += ["train.micro_batch_size=1", "train.global_batch_size=32", "train.reshard=always"]
    command += ["--gpus", "16", "--gpu", "h100", "--network", "5", "--mfu", "0.4"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "fits: 79.1 GiB" in out and "None of it has been measured on a GPU yet" in out
    assert "products at 40% of 989 TFLOP/s" in out and "network 5 GB/s" in out
    rows = re.findall(r"^  weights gathered +([\d.]+) +([\d.]+) +([\d.]+)", out, re.M)
    block = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14336 + 2 * 4096
    top, rest = 128256 * 4096 + 4096, 128256 * 4096
    size = 2 * (2 * 2 * 3 * block + 2 * (top + rest)) / 1e9  # two micro-batches of bf16
    expected = size, size * 15 / 16 * 7 / 8, size * 15 / 16 / 8
    assert [float(cell) for cell in rows[0]] == pytest.approx(expected, abs=0.01)
    assert "limited by communication" in out
    faster = out[out.index("faster, each of these alone:") :]
    for change in ("train.replicas=2", "train.reshard=never", "train.micro_batch_size=2"):
        assert re.search(rf"  {change}: [\d,]+ tokens per second \(\+\d+%\)", faster), change


def test_ranks_that_share_packs_take_the_time_of_their_part(tmp_path, capsys):
    """And exchange tokens for heads, across nodes where they are more than a node has."""
    command = [shape(tmp_path, "8b", num_hidden_layers=1), "data.path=absent.jsonl"]
    command += [f"run_dir={tmp_path / 'run'}", "train.activation_checkpointing=full"]
    command += ["train.micro_batch_size=1", "train.global_batch_size=32", "data.max_length=8192"]
    command += ["model.fp8=rowwise", "--gpus", "16", "--gpu", "H100"]
    needed, tokens = [], []
    for shared in (1, 16):
        assert main([*command, f"train.context_parallel={shared}"]) == 0
        out = capsys.readouterr().out
        assert "seconds per step of 32 full packs" in out and "not counted: model.fp8" in out
        for found, name in (
            (needed, r"products, attention +([\d.]+)"),
            (tokens, r"second: ([\d,]+)"),
        ):
            text = re.search(name, out)
            assert text is not None
            found.append(float(text[1].replace(",", "")))
    assert needed[1] == pytest.approx(needed[0], abs=0.002) and tokens[1] < tokens[0]
    row = re.search(r"tokens exchanged for heads +([\d.]+) +([\d.]+) +([\d.]+) ", out)
    assert row is not None
    # 32 parts of packs; forward, once more, backward; 8 key heads are repeated for 16 ranks
    size = 32 * 512 * 3 * 2 * (2 * 32 + 2 * 16) * 128 / 1e9
    expected = size, size * 7 / 16, size * 8 / 16
    assert [float(cell) for cell in row.groups()] == pytest.approx(expected, abs=0.01)


def test_a_pack_that_does_not_fit_may_be_shared(tmp_path, capsys):
    """Advised with what it costs; the range of speeds that nobody has measured here is printed."""
    command = [shape(tmp_path, "8b", num_hidden_layers=2), "data.path=absent.jsonl"]
    command += [f"run_dir={tmp_path / 'run'}", "train.activation_checkpointing=full"]
    command += ["data.max_length=131072", "train.global_batch_size=8", "--gpus", "8"]
    assert main([*command, "--gpu", "A10"]) == 1
    out = capsys.readouterr().out
    advised = (
        r"  train\.context_parallel=(\d) \((\d) GPUs to a pack, (\d) micro-batches per rank and "
    )
    advised += r"step, ([\d,]+) tokens per second, \d+% of it exchanges\): ([\d.]+) GiB(, fits)?"
    found = re.findall(advised, out)
    assert [row[:3] for row in found] == [(n, n, n) for n in "248"]
    size, _, _, tokens, peak, fits = found[-1]
    assert fits and float(peak) < float(found[0][4])
    shared = [*command, "--gpu", "A10", "train.reshard=always"]
    shared += [f"train.context_parallel={size}"]
    assert main([*shared, "train.micro_batch_size=1"]) == 0
    out = capsys.readouterr().out
    assert f"tokens per second: {tokens}, " in out
    peaks = re.search(r"^  peak +([\d.]+)", out, re.M)
    assert peaks is not None and float(peaks[1]) == pytest.approx(float(peak), abs=0.01)
    step = re.search(r"^  step +([\d.]+)", out, re.M)
    between = re.search(r"a guess: ([\d.]+) s at 47% of the peak to ([\d.]+) s at 33%, not", out)
    assert step is not None and between is not None
    assert float(between[1]) < float(step[1]) < float(between[2])
    # a rank's micro-batch may have as many packs as ranks share them
    assert (
        main([*command, "--gpu", "B200", "data.max_length=32768", "train.context_parallel=4"]) == 0
    )
    assert "train.micro_batch_size=auto: 4 x 32,768 tokens" in capsys.readouterr().out


def test_experts_are_counted_as_active_and_traced(tmp_path):
    layers = {"num_hidden_layers": 1}
    path = shape(tmp_path, "30b_a3b", **layers)
    config = load_config([path, "data.path=absent.jsonl", f"run_dir={tmp_path / 'run'}"])
    model_config = AutoConfig.from_pretrained(tmp_path)
    traced = trace(with_choice(config, Choice(1, "always", [])), model_config, True, 8, 1)
    experts = 128 * 3 * 2048 * 768
    assert traced.parameters - traced.active == experts * (1 - 8 / 128)
    # of each token and expert: input, gate and up, their product, output, twice where it is
    # weighted and put back in order; bf16
    least = 2048 * 8 * 2 * (2048 + 2 * 768 + 768 + 2048)
    assert least < traced.memory.kept < 3 * least


def test_latent_attention_is_traced(tmp_path):
    """Whose values are smaller than its queries, with the kernels of a GPU."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 99}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1}
    model_config = DeepseekV3Config(**sizes)
    config = load_config(["model.path=absent", "data.path=absent", f"run_dir={tmp_path}"])
    traced = trace(with_choice(config, Choice(1, "always", [])), model_config, True, 1, 1)
    attention = 4 * (192 + 128)  # scores and values of a token and head, causal
    assert traced.operations.forward > attention * config.data.max_length


def test_an_impossible_cluster_is_named(tmp_path, tiny_model, capsys):
    for options, message in (
        (["--gpu", "V100"], r"--gpu V100: not known; one of H200"),
        (["--gpus", "12", "--gpu", "H100"], r"--gpus 12 is not a multiple of --gpus-per-node 8"),
        (["--gpu", "H100", "--mfu", "40"], r"--mfu 40.0: a share of the peak, such as 0.4"),
        (["--mfu", "0.4"], r"--mfu 0.4 is for the time of a step, .*add --gpu NAME"),
        (["--gpu-memory", "24", "--network", "5"], r"--network 5.0 is for .*add --gpu NAME"),
        (["--gpus-per-node", "4"], r"--gpus-per-node 4 is for the time"),
        (["--gpus", "0"], r"--gpus 0: give a number above 0"),
        (["--gpu-memory", "-3"], r"--gpu-memory -3.0: give a number above 0"),
        (["--gpu", "H100", "--network", "-1"], r"--network -1.0: give a number above 0"),
    ):
        assert main([*arguments(tmp_path, tiny_model()), *options]) == 2
        assert re.search(message, capsys.readouterr().err)
