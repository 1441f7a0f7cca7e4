"""Answering prompts with real parts: a model of the trainer, real items, a real kill."""

import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from adaptsft.errors import DataError
from adaptsft.evals import samples
from adaptsft.evals.score import Grading, score
from adaptsft.train import train
from tests.evals.pipeline import SCHEMA, evals, results_of, samples_of
from tests.runs import PROCESSES, small_config

SCORED_KEYS = {
    "item_id",
    "sample",
    "prompt_sha",
    "prompt",
    "output",
    "finish_reason",
    "n_tokens",
    "extracted",
    "gold",
    "scores",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model) -> Path:
    """A run of the trainer: three steps with a schedule."""
    folder = tmp_path_factory.mktemp("trained")
    config = small_config(
        folder,
        tiny_model("qwen2"),
        train__max_steps=3,
        objective__name="alpha",
        controller__name="linear",
        checkpoint__every=0,
    )
    train(config)
    return Path(config.run_dir)


def test_end_to_end_on_real_items(run, shared_data, tmp_path, capsys):
    """A model of the trainer on four tasks, greedy and temperature 1 side by side."""
    out = tmp_path / "out"
    settings = ["--model", run, "--out", out, "--data-dir", shared_data, "--limit", 4]
    settings += ["--max-tokens", 12, "--workers", 1]
    assert evals("run", "--tasks", "gsm8k,math500", "--temperature", 1, "--n", 2, *settings) == 0
    assert evals("run", "--tasks", "figfont,openbookqa", "--temperature", "0,1", *settings) == 0
    printed = capsys.readouterr().out
    results = results_of(out)
    assert list(results) == [
        "figfont/T1",
        "figfont/greedy",
        "gsm8k/T1",
        "math500/T1",
        "openbookqa/T1",
        "openbookqa/greedy",
    ]
    for name, result in results.items():
        jsonschema.validate(result, SCHEMA)
        n = 2 if name.startswith(("gsm8k", "math500")) else 1
        assert (result["gen"]["n"], result["task"]["n_items"]) == (n, 4)
        assert result["model"]["objective"] == "alpha alpha linear 0->1"
        assert any(note.startswith("the first 4 of ") for note in result["protocol_notes"])
        scored, _ = samples.read_lines(out / name / "scored.jsonl")
        assert len(scored) == 4 * n
        assert set(scored[0]) >= SCORED_KEYS
        for metric, columns in result["per_sample_index_acc"].items():
            assert np.mean(columns) == pytest.approx(result["metrics"][metric]["value"])
    assert results["figfont/greedy"]["metrics"].keys() == {"exact_match", "jw_paper", "jw_standard"}
    assert results["gsm8k/T1"]["metrics"].keys() > {
        "math-paper",
        "math-robust",
        "math-paper/pass@2",
        "math-paper/paper_rounding",
    }
    sampled = list(samples_of(out / "gsm8k/T1").values())
    drawn = sum(sample["drawn"] for sample in sampled)
    mean = sum(sample["entropy"] * sample["drawn"] for sample in sampled) / drawn
    entropy = results["gsm8k/T1"]["entropy"]
    assert entropy["value"] == pytest.approx(mean) and mean > 0
    assert (entropy["n"], entropy["tokens"]) == (4, drawn) and entropy["se"] > 0
    assert results["figfont/T1"]["entropy"] is not None, "one sample is enough for it"
    assert results["figfont/greedy"]["entropy"] is None
    assert f"entropy {entropy['value']:.3f} nats per token" in printed, "of score"
    assert f"{entropy['value']:.3f} ± {entropy['se']:.3f}" in printed, "of report"
    assert "GSM8K pass@2 (T=1)" in printed and "gsm8k: entropy, nats per token (T=1)" in printed
    assert "math-robust/pass@2 " in printed
    assert "| alpha alpha linear 0->1 |" in printed
    assert "GSM8K (T=1, mean of 2)" in printed
    assert "Figfont EM (greedy) | Figfont JW (greedy)" in printed
    prompt = samples.read_lines(out / "gsm8k/T1" / "scored.jsonl")[0][0]["prompt"]
    assert prompt.startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nJanet"
    )

    written = {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("samples.*")
    }
    assert evals("score", out / "openbookqa") == 0
    assert results_of(out) == results
    assert evals("generate", "--tasks", "figfont", "--temperature", "0,1", *settings[:-2]) == 0
    assert written == {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("samples.*")
    }, "nothing is generated twice"


def test_killed_and_resumed_is_the_same(tiny_model, shared_data, tmp_path):
    """SIGKILL while samples are written, a last line cut off; then the same command again."""
    model = tiny_model("llama")
    settings = ["--model", model, "--tasks", "gsm8k", "--data-dir", shared_data, "--limit", 24]
    settings += ["--temperature", 1, "--samples", 2, "--max-tokens", 20, "--template", "plain"]
    assert evals("generate", *settings, "--out", tmp_path / "whole") == 0
    whole = samples_of(tmp_path / "whole" / "gsm8k" / "T1")
    assert len(whole) == 48

    killed = tmp_path / "killed" / "gsm8k" / "T1"
    command = ["generate", *settings, "--batch-size", 2, "--out", tmp_path / "killed"]
    process = PROCESSES.Process(target=evals, args=command)
    process.start()
    try:
        written = killed / "samples.rank0.jsonl"
        while not (written.is_file() and written.stat().st_size > 0):
            assert process.is_alive()
            time.sleep(0.002)
    finally:
        process.kill()
        process.join()
    left = len(samples_of(killed))
    assert 0 < left < 48
    with pytest.raises(DataError, match=f"{48 - left} of 48 answers are missing"):
        score(killed, Grading())
    with written.open("a") as file:
        file.write('{"key": "abc", "outp')
    assert evals("generate", *settings, "--batch-size", 3, "--out", tmp_path / "killed") == 0
    resumed = samples_of(killed)
    assert {key: row["output"] for key, row in resumed.items()} == {
        key: row["output"] for key, row in whole.items()
    }
    assert len(samples.read_lines(written)[0]) == 48, "nothing twice, and the torn line is gone"


def test_samples_of_something_else_are_not_mixed(tiny_model, shared_data, tmp_path, capsys):
    settings = ["--tasks", "gsm8k", "--data-dir", shared_data, "--limit", 2, "--out", tmp_path]
    assert evals("generate", "--model", tiny_model("llama"), "--max-tokens", 4, *settings) == 0
    for change, named in (
        (["--model", tiny_model("llama"), "--max-tokens", 5], "params.max_tokens: 4 -> 5"),
        (["--model", tiny_model("qwen2"), "--max-tokens", 4], "backend.revision"),
        (["--model", tiny_model("llama"), "--max-tokens", 4, "--seed", 1], "seed: 42 -> 1"),
        (
            ["--model", tiny_model("llama"), "--max-tokens", 4, "--template", "deepseek"],
            "backend.template: chat -> deepseek",
        ),
    ):
        capsys.readouterr()
        assert evals("generate", *settings, *change) == 2
        assert named in capsys.readouterr().err
    more = [*settings[:-4], "--limit", 3, "--out", tmp_path]
    assert evals("generate", *more, "--model", tiny_model("llama"), "--max-tokens", 4) == 0
    assert len(samples_of(tmp_path / "gsm8k" / "greedy")) == 3, "more items of the same are welcome"
