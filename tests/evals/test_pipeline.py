"""All three stages with real parts: tiny models trained by the trainer, real items, real kills,
real ranks.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from adaptsft.config.schema import DataConfig
from adaptsft.errors import DataError
from adaptsft.evals import compare, in_training, samples
from adaptsft.evals.__main__ import main
from adaptsft.evals.backends import Request, Sampling
from adaptsft.evals.backends.hf import HuggingFace
from adaptsft.evals.data import load_items
from adaptsft.evals.generate import requests_of
from adaptsft.evals.score import Grading, score
from adaptsft.evals.tasks import load_task
from adaptsft.train import train
from tests.conftest import REPO
from tests.evals.two_ranks import GENERATE
from tests.runs import small_config

SCHEMA = json.loads((REPO / "adaptsft" / "evals" / "result.schema.json").read_text())
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model) -> Path:
    """A run of the trainer: three steps with a schedule."""
    folder = tmp_path_factory.mktemp("trained")
    config = small_config(
        folder, tiny_model("qwen2"), train__max_steps=3, objective__name="alpha", controller__name="linear", checkpoint__every=0
    )  # fmt: skip
    train(config)
    return Path(config.run_dir)


def evals(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def rows_of(folder: Path) -> dict[str, dict]:
    return samples.Samples(folder, -1).rows


def results_of(out: Path) -> dict[str, dict]:
    return {
        str(path.parent.relative_to(out)): json.loads(path.read_text())
        for path in sorted(out.rglob("result.json"))
    }


def test_end_to_end_on_real_items(run, shared_data, tmp_path, capsys):
    """A model that the trainer has made, on GSM8K, MATH-500, figfont and OpenBookQA; greedy and
    temperature 1 side by side.
    """
    out = tmp_path / "out"
    settings = [
        "--model",
        run,
        "--out",
        out,
        "--data-dir",
        shared_data,
        "--limit",
        4,
        "--max-tokens",
        12,
        "--workers",
        1,
    ]
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
        assert set(scored[0]) >= {
            "item_id", "sample", "prompt_sha", "prompt", "output", "finish_reason", "n_tokens", "extracted", "gold", "scores",
        }  # fmt: skip
        for metric, columns in result["per_sample_index_acc"].items():
            assert np.mean(columns) == pytest.approx(result["metrics"][metric]["value"])
    assert results["figfont/greedy"]["metrics"].keys() == {"exact_match", "jw_paper", "jw_standard"}
    assert results["gsm8k/T1"]["metrics"].keys() > {
        "math-paper",
        "math-robust",
        "math-paper/pass@2",
        "math-paper/paper_rounding",
    }
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
    """SIGKILL while samples are written, a last line torn besides; then the same command, in other
    batches.
    """
    model = tiny_model("llama")
    settings = [
        "--model",
        model,
        "--tasks",
        "gsm8k",
        "--data-dir",
        shared_data,
        "--limit",
        24,
        "--temperature",
        1,
        "--samples",
        2,
    ]
    settings += ["--max-tokens", 20, "--template", "plain"]
    assert evals("generate", *settings, "--out", tmp_path / "whole") == 0
    whole = rows_of(tmp_path / "whole" / "gsm8k" / "T1")
    assert len(whole) == 48

    killed = tmp_path / "killed" / "gsm8k" / "T1"
    command = [
        sys.executable,
        "-m",
        "adaptsft.evals",
        "generate",
        *map(str, settings),
        "--batch-size",
        "2",
        "--out",
        str(tmp_path / "killed"),
    ]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=REPO, stderr=subprocess.DEVNULL)
    try:
        written, deadline = killed / "samples.rank0.jsonl", time.monotonic() + 120
        while not (written.is_file() and written.stat().st_size > 0):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = len(rows_of(killed))
    assert 0 < left < 48
    with pytest.raises(DataError, match=f"{48 - left} of 48 answers are missing"):
        score(killed, Grading())
    with written.open("a") as file:
        file.write('{"key": "abc", "outp')
    assert evals("generate", *settings, "--batch-size", 3, "--out", tmp_path / "killed") == 0
    resumed = rows_of(killed)
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
    assert (
        evals(
            "generate",
            *settings[:-4],
            "--limit",
            3,
            "--out",
            tmp_path,
            "--model",
            tiny_model("llama"),
            "--max-tokens",
            4,
        )
        == 0
    )
    assert len(rows_of(tmp_path / "gsm8k" / "greedy")) == 3, "more items of the same are welcome"


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "samples.rank0.jsonl").write_text('{"key": "a"}\n{"key": \n{"key": "b"}\n')
    with pytest.raises(DataError, match=r"samples\.rank0\.jsonl:2: not JSON"):
        samples.Samples(tmp_path, 0)


def test_seeds_are_of_the_request_alone():
    seeds = {
        samples.seed_of(42, task, item, i)
        for task in ("a", "b")
        for item in ("1", "2", "11")
        for i in range(4)
    }
    assert len(seeds) == 24 and all(0 <= seed < 2**31 for seed in seeds)
    assert (
        samples.seed_of(42, "a", "1", 1)
        != samples.seed_of(42, "a", "11", 1)
        != samples.seed_of(43, "a", "11", 1)
    )


@pytest.fixture(scope="module")
def replayed(tmp_path_factory, shared_data) -> Path:
    """Three runs of recorded answers to OpenBookQA: right, nearly as often right, and mostly wrong."""
    out = tmp_path_factory.mktemp("replayed")
    items = load_items(load_task("openbookqa"), shared_data).items[:60]
    for name, wrong in (("good", {1, 2}), ("near", {1, 3, 4}), ("bad", set(range(40)))):
        file = out / f"{name}.jsonl"
        with file.open("w") as lines:
            for i, (item_id, fields) in enumerate(items):
                letter = (
                    next(letter for letter in "AB" if letter != fields["gold"])
                    if i in wrong
                    else fields["gold"]
                )
                lines.write(
                    json.dumps({"item_id": item_id, "output": f"So it is \\boxed{{{letter}}}."})
                    + "\n"
                )
        settings = ["--tasks", "openbookqa", "--data-dir", shared_data, "--limit", 60]
        assert (
            evals("run", "--backend", "replay", "--replay", file, "--out", out / name, *settings)
            == 0
        )
    return out


def test_replay_is_graded(replayed):
    for name, right in (("good", 58), ("near", 57), ("bad", 20)):
        result = json.loads((replayed / name / "openbookqa" / "greedy" / "result.json").read_text())
        jsonschema.validate(result, SCHEMA)
        for grader in ("medical-paper", "medical-m1"):
            assert result["metrics"][grader]["value"] == pytest.approx(right / 60)
        assert result["disagreements"] == 0 and result["rates"]["unparsed"] == {
            "medical-paper": 0,
            "medical-m1": 0,
        }


def test_report_marks_the_best_and_what_is_within_noise(replayed, tmp_path):
    runs = [replayed / name for name in ("good", "near", "bad")]
    assert evals("report", "--compare", *runs, "--to", tmp_path) == 0
    text = (tmp_path / "report.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "| **96.7 ± 2.3** [" in rows["good"]
    assert "| 95.0 ± 2.8 ~ [" in rows["near"]
    assert "| 33.3 ± 6.1 [" in rows["bad"]
    assert "OpenBookQA: the first 60 of 500 items" in text and "OpenBookQA (greedy) 60" in text
    with (tmp_path / "report.csv").open() as file:
        cells = {(row["objective"], row["column"]): row for row in csv.DictReader(file)}
    assert float(cells["near", "OpenBookQA (greedy)"]["value"]) == pytest.approx(57 / 60)
    assert cells["near", "OpenBookQA (greedy)"]["within_noise"] == "True"
    assert cells["bad", "OpenBookQA (greedy)"]["within_noise"] == "False"
    tex = (tmp_path / "report.tex").read_text()
    assert r"\textbf{96.7 $\pm$ 2.3}" in tex
    assert tex.count("{") == tex.count("}")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_runs_in_folders_of_one_name_keep_their_rows(replayed, tmp_path, capsys):
    """Two seeds of one objective, each evaluated into RUN/evals as the guide has it; the second
    with other items.
    """
    runs = [tmp_path / seed / "evals" for seed in ("seed0", "seed1")]
    for run, name in zip(runs, ("good", "bad"), strict=True):
        shutil.copytree(replayed / name, run)
        result = samples.read_json(run / "openbookqa" / "greedy" / "result.json")
        result["model"]["objective"] = "nll"
        samples.write_json(run / "openbookqa" / "greedy" / "result.json", result)
    result["metrics"]["medical-m1"]["n"] = 59
    samples.write_json(runs[1] / "openbookqa" / "greedy" / "result.json", result)
    assert evals("report", "--compare", *runs, "--to", tmp_path) == 0
    text = (tmp_path / "report.md").read_text()
    assert "| nll (seed0/evals) | **96.7" in text and "| nll (seed1/evals) | 33.3" in text
    assert "OpenBookQA (greedy) 59 to 60." in text
    shutil.copytree(runs[0] / "openbookqa", runs[0] / "mine")
    assert evals("report", *runs) == 3, "one column cannot hold two tasks' figures"
    assert "has the column 'OpenBookQA (greedy)' too" in capsys.readouterr().err


def test_other_items_or_data_are_not_compared(replayed, tmp_path):
    good, bad = (replayed / name / "openbookqa" / "greedy" for name in ("good", "bad"))
    assert compare.compare(good, bad, "medical-m1").n == 60
    for path in bad.iterdir():
        if path.is_file() and not path.name.startswith("."):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    asked = json.loads((tmp_path / "run.json").read_text())
    asked["data"]["sha256"] = "0" * 64
    (tmp_path / "run.json").write_text(json.dumps(asked))
    with pytest.raises(DataError, match="evaluated on other data"):
        compare.compare(good, tmp_path, "medical-m1")


def test_alpaca_eval_is_scored_once_it_is_judged(shared_data, tmp_path, capsys):
    file, folder = tmp_path / "outputs.jsonl", tmp_path / "out" / "alpaca_eval" / "greedy"
    file.write_text(
        "".join(json.dumps({"item_id": str(i), "output": f"answer {i}"}) + "\n" for i in range(4))
    )
    settings = [
        "--backend",
        "replay",
        "--replay",
        file,
        "--temperature",
        0,
        "--data-dir",
        shared_data,
        "--limit",
        4,
    ]
    assert evals("run", "--tasks", "alpaca_eval", "--out", tmp_path / "out", *settings) == 3
    assert f"python -m adaptsft.evals judge {folder} REFERENCE" in capsys.readouterr().err
    rows = [
        {
            "generator_1": "reference",
            "generator_2": "mine",
            "output_1": "a",
            "output_2": "bb",
            "preference": p,
        }
        for p in (2, 1.25, None)
    ]
    samples.write_json(folder / "annotations.json", rows)
    assert evals("score", folder) == 3
    assert "3 judgements of 4 answers" in capsys.readouterr().err
    samples.write_json(folder / "annotations.json", rows[2:] * 4)
    assert evals("score", folder) == 3 and not (folder / "result.json").exists()
    assert "the judge chose in none of 4 pairs" in capsys.readouterr().err
    samples.write_json(folder / "annotations.json", [*rows, rows[0] | {"preference": 1.0}])
    assert evals("score", folder) == 0
    result = json.loads((folder / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert result["metrics"]["win_rate"] == {
        "value": pytest.approx(1.25 / 3),
        "se": pytest.approx(np.std([1, 0.25, 0], ddof=1) / 3**0.5),
        "n": 3,
    }
    assert evals("report", tmp_path / "out") == 0
    assert "AlpacaEval 2 WR (greedy)" in (tmp_path / "out" / "report.md").read_text()


def test_a_task_of_lm_eval_goes_through_the_same_stages(tiny_model, tmp_path, capsys):
    pytest.importorskip(
        "lm_eval", reason="lm-eval is not installed: pip install 'adaptsft[harness]'"
    )
    from tests.evals.test_harness import QUESTIONS, hub_folder

    rows = [
        {
            "id": str(i),
            "question_stem": stem,
            "choices": {"text": options, "label": list("ABCD")},
            "answerKey": "ABCD"[gold],
        }
        for i, (stem, options, gold) in enumerate(QUESTIONS)
    ]
    hub_folder(
        tmp_path / "data" / "allenai" / "openbookqa",
        "main",
        {"train": rows, "validation": rows, "test": rows},
    )
    (tmp_path / "five.yaml").write_text("extends: openbookqa_likelihood\nitems: 5\n")
    out = tmp_path / "out"
    settings = ["--tasks", tmp_path / "five.yaml", "--data-dir", tmp_path / "data", "--out", out]
    assert evals("run", "--model", tiny_model("llama"), *settings) == 0
    assert "OpenBookQA likelihood (likelihood)" in capsys.readouterr().out
    result = json.loads((out / "five" / "harness" / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert result["metrics"]["acc"]["n"] == 5
    before = (out / "five" / "harness" / "samples.rank0.jsonl").read_bytes()
    assert evals("score", out) == 0
    assert json.loads((out / "five" / "harness" / "result.json").read_text()) == result
    assert (out / "five" / "harness" / "samples.rank0.jsonl").read_bytes() == before
    assert evals("generate", "--model", tiny_model("llama"), *settings, "--temperature", "0,1") == 2
    assert "five: lm-eval's task decides how it decodes" in capsys.readouterr().err
    assert evals("generate", "--model", tiny_model("qwen2"), *settings) == 2, (
        "another model's answers are not mixed with these"
    )


def test_a_raw_prompt_is_asked_raw_in_training_too(tiny_model, shared_data, tmp_path):
    (tmp_path / "raw.yaml").write_text(
        "extends: openbookqa\nprompt: {user: 'Question: {question}', raw: true}\n"
    )
    folder = tiny_model("qwen2")
    backend = HuggingFace(str(folder), template="chat")
    (task,) = in_training.prepare(
        [str(tmp_path / "raw.yaml")],
        shared_data,
        1,
        4,
        backend.tokenizer,
        DataConfig(template="chat"),
    )
    (request,) = requests_of(
        load_items(task.task, shared_data).items[:1], task.task, backend, 1, 42
    )
    assert task.prompts == [backend.renderer.ids(request.text)] and request.text.startswith(
        "Question: "
    )


def test_mistakes_on_the_command_line(tiny_model, tmp_path, capsys, shared_data):
    common = ["--out", tmp_path, "--data-dir", shared_data]
    assert evals("run", "--tasks", "humaneval", "--model", tiny_model("llama"), *common) == 2
    assert "--allow-code-exec" in capsys.readouterr().err
    assert evals("run", "--tasks", "gms8k", "--model", tiny_model("llama"), *common) == 2
    assert "did you mean gsm8k" in capsys.readouterr().err
    assert evals("generate", "--tasks", "gsm8k", "--out", tmp_path) == 2
    assert "--model" in capsys.readouterr().err
    assert evals("score", tmp_path / "nothing") == 3
    assert evals("report", tmp_path / "nothing") == 3
    assert "run `python -m adaptsft.evals score" in capsys.readouterr().err
    assert evals("report") == 2
    with pytest.raises(SystemExit):
        evals("generate", "--tasks", "gsm8k", "--out", tmp_path, "--temperature", "-1")
    assert "0 (greedy) or above" in capsys.readouterr().err
    for option, value, said in (
        ("--temperature", "0;1", "0;1: write a temperature"),
        ("--limit", "x", "x: must be a whole number, 1 or more"),
    ):
        with pytest.raises(SystemExit):
            evals("generate", "--tasks", "gsm8k", "--out", tmp_path, option, value)
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evals("judge", tmp_path, tmp_path, "--out", tmp_path, "--limit", 0)
    assert "--limit: 0: must be a whole number, 1 or more" in capsys.readouterr().err
    for option, value, reader in (
        ("--url", "http://localhost:1/v1", "http"),
        ("--tensor-parallel", 2, "vllm"),
    ):
        assert (
            evals(
                "generate",
                "--tasks",
                "gsm8k",
                "--model",
                tiny_model("llama"),
                *common,
                option,
                value,
            )
            == 2
        )
        assert (
            f"{option} {value}: --backend hf does not read it; it is of --backend {reader}"
            in capsys.readouterr().err
        )
    with pytest.raises(SystemExit) as ended:
        evals("--help")
    assert ended.value.code == 0
    assert "three stages" in capsys.readouterr().out


def test_two_ranks(tiny_model, shared_data, tmp_path):
    """Tasks evaluated between steps give what the exported weights give, and change nothing of
    training; `generate` splits its items.
    """
    model = tiny_model("gemma3")
    small_config(tmp_path, model)  # writes the data
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.evals.two_ranks",
    ]
    command += [str(tmp_path), str(model), str(shared_data)]
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=REPO, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    plain, evaluated = (torch.load(tmp_path / f"{name}.pt") for name in ("plain", "evaluated"))
    assert plain.keys() == evaluated.keys() and len(plain) > 20
    for name in plain:
        assert torch.equal(plain[name], evaluated[name]), name

    found = json.loads((tmp_path / "found.json").read_text())
    assert found["metrics"].keys() == {"openbookqa", "figfont"}
    assert found["metrics"]["openbookqa"].keys() == {
        "medical-m1",
        "medical-paper",
        "truncated",
        "samples",
    }
    assert found["beats"] > 20, "the watchdog hears of every token"
    backend = HuggingFace(str(tmp_path / "exported"))
    requests = [Request(str(i), 0, 0, [], text) for i, text in enumerate(found["prompts"])]
    assert [output.text for output in backend.generate(requests, Sampling(max_tokens=8))] == found[
        "outputs"
    ]

    assert (
        evals(
            "generate",
            "--model",
            model,
            "--data-dir",
            shared_data,
            "--out",
            tmp_path / "alone",
            *GENERATE,
        )
        == 0
    )
    together, alone = (tmp_path / name / "openbookqa" / "T1" for name in ("out", "alone"))
    assert {path.name: len(samples.read_lines(path)[0]) for path in together.glob("samples.*")} == {
        "samples.rank0.jsonl": 9, "samples.rank1.jsonl": 9,
    }  # fmt: skip
    assert {key: row["output"] for key, row in rows_of(together).items()} == {
        key: row["output"] for key, row in rows_of(alone).items()
    }
