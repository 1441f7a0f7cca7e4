"""Tasks evaluated while a model trains, on one rank and on two."""

import json
import math

import pytest
import torch

from adaptsft.config.schema import DataConfig, EvalConfig
from adaptsft.errors import ConfigError
from adaptsft.evals import in_training, samples
from adaptsft.evals.backends.hf import HuggingFace
from adaptsft.evals.data import load_items
from adaptsft.evals.generate import requests_of
from adaptsft.evals.protocol import Request, Sampling
from adaptsft.train import train
from tests.distributed.two_ranks import on_two_ranks
from tests.evals.pipeline import evals, samples_of
from tests.evals.two_ranks import GENERATE, main
from tests.runs import small_config


def test_a_raw_prompt_is_asked_raw_in_training_too(tiny_model, shared_data, tmp_path):
    (tmp_path / "raw.yaml").write_text(
        "extends: openbookqa\nprompt: {user: 'Question: {question}', raw: true}\n"
    )
    folder = tiny_model("qwen2")
    backend = HuggingFace(str(folder), template="chat")
    raw, data = str(tmp_path / "raw.yaml"), DataConfig(template="chat")
    settings = EvalConfig(tasks=[raw], data_dir=str(shared_data), limit=1, max_tokens=4)
    (task,) = in_training.prepare(settings, backend.tokenizer, data, seed=42)
    items = load_items(task.task, shared_data).items[:1]
    (request,) = requests_of(items, task.task, backend, 1, 42)
    assert task.prompts == [backend.renderer.ids(request.text)]
    assert request.text.startswith("Question: ")


def test_a_run_records_pass_at_k_and_entropy(tiny_model, shared_data, tmp_path, capsys):
    """eval.samples=4 answers to each item; greedy evaluations have neither."""
    settings = {"eval__tasks": ["figfont"], "eval__limit": 3, "eval__max_tokens": 4}
    settings |= {"eval__data_dir": shared_data, "train__max_steps": 1, "checkpoint__every": 0}
    found = {}
    for samples_ in (1, 4):
        config = small_config(
            tmp_path, tiny_model("llama"), f"n{samples_}", eval__samples=samples_, **settings
        )
        train(config)
        (line,) = samples.read_lines(tmp_path / f"n{samples_}" / "eval.jsonl")[0]
        found[samples_] = line["tasks"]["figfont"]
    more = found[4].keys() - found[1].keys()
    assert more >= {"exact_match/pass@2", "exact_match/pass@4", "entropy"}
    assert found[1].keys() < found[4].keys() and 0.2 < found[4]["entropy"] < math.log(512)
    assert f"figfont/entropy {found[4]['entropy']:.3f}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"eval\.samples"):
        small_config(tmp_path, tiny_model("llama"), eval__samples=0)


def test_two_ranks(tiny_model, shared_data, tmp_path):
    """Tasks between steps give the exported weights' answers, and do not change training.

    `generate` splits its items between the ranks.
    """
    model = tiny_model("gemma3")
    small_config(tmp_path, model)  # writes the data
    codes, printed = on_two_ranks(main, tmp_path, model, shared_data, log=tmp_path / "log")
    assert codes == [0, 0], printed[-4000:]
    plain, evaluated = (torch.load(tmp_path / f"{name}.pt") for name in ("plain", "evaluated"))
    assert plain.keys() == evaluated.keys() and len(plain) > 20
    for name in plain:
        assert torch.equal(plain[name], evaluated[name]), name

    found = json.loads((tmp_path / "found.json").read_text())
    assert found["metrics"].keys() == {"openbookqa", "figfont"}
    assert found["metrics"]["openbookqa"].keys() == {
        "medical-m1",
        "medical-paper",
        "mcq-robust",
        "truncated",
        "samples",
    }
    assert found["beats"] > 20, "the watchdog hears of every token"
    assert found["metrics"]["figfont"].keys() > {"exact_match", "exact_match/pass@2", "entropy"}
    backend = HuggingFace(str(tmp_path / "exported"))
    for number, sampling in enumerate((Sampling(max_tokens=8), Sampling(1.0, max_tokens=5))):
        prompts, seeds = found["prompts"][number], found["seeds"][number]
        of_each = len(seeds) // len(prompts)
        assert of_each == (1, 3)[number]
        requests = [Request("", 0, seed, [], prompts[i // of_each]) for i, seed in enumerate(seeds)]
        outputs = backend.generate(requests, sampling)
        assert [output.text for output in outputs] == found["outputs"][number]
    assert len({output.text for output in outputs[:3]}) > 1, "answers to an item differ"
    drawn = [(output.entropy * output.drawn, output.drawn) for output in outputs]
    entropy = sum(sums for sums, _ in drawn) / sum(counts for _, counts in drawn)
    assert found["metrics"]["figfont"]["entropy"] == pytest.approx(entropy, rel=1e-4)

    alone = ["--model", model, "--data-dir", shared_data, "--out", tmp_path / "alone"]
    assert evals("generate", *alone, *GENERATE) == 0
    together, alone = (tmp_path / name / "openbookqa" / "T1" for name in ("out", "alone"))
    written = {path.name: len(samples.read_lines(path)[0]) for path in together.glob("samples.*")}
    assert written == {"samples.rank0.jsonl": 9, "samples.rank1.jsonl": 9}
    assert {key: row["output"] for key, row in samples_of(together).items()} == {
        key: row["output"] for key, row in samples_of(alone).items()
    }
