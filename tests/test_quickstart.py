import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft import config as configuration
from adaptsft.errors import ConfigError
from adaptsft.quickstart import runs, settings as quickstart_settings, tasks
from adaptsft.quickstart.__main__ import main
from adaptsft.tiny import make_tiny_model
from tests.conftest import REPO

CONFIG = str(REPO / "configs" / "quickstart.yaml")


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers():
    written = {name: task.answer("zebra") for name, task in tasks.TASKS.items()}
    assert written | {"cipher": ""} == {"upper": "ZEBRA", "copy": "zebra", "next": "afcsb", "reverse": "arbez", "cipher": ""}
    assert len(set(tasks.CIPHER.values())) == 26, "a cipher that can be undone"
    others = "".join(task.alphabet for name, task in tasks.TASKS.items() if name != "cipher")
    assert not set(tasks.SYMBOLS) & set(others), "the symbols are new to a model that knows the other tasks"
    assert tasks.tokenizer()(tasks.prompt("cipher", "zebra")).input_ids, "the tokenizer knows every character"


def test_examples_are_noisy_as_asked_repeatable_and_never_held_out(tmp_path):
    path = tasks.write_examples(tmp_path / "a.jsonl", ["upper", "cipher"], 2000, 0.3, seed=5, held_out=300)
    examples = rows_of(path)
    assert len(examples) == 2000
    wrong = sum(a != b for row in examples for a, b in zip(row["completion"], row["clean"], strict=True)) / (2000 * tasks.LENGTH)
    assert wrong == pytest.approx(0.3, abs=0.02)
    for row in examples:
        name, word = row["prompt"].strip("<=").split(">")
        assert row["clean"] == tasks.TASKS[name].answer(word)
        assert set(row["completion"]) <= set(tasks.TASKS[name].alphabet)
    held_out = set(tasks.held_out_words(300))
    assert len(held_out) == 300
    assert not held_out & {row["prompt"].strip("<=").split(">")[1] for row in examples}
    again = tasks.write_examples(tmp_path / "b.jsonl", ["upper", "cipher"], 2000, 0.3, seed=5, held_out=300)
    other = tasks.write_examples(tmp_path / "c.jsonl", ["upper", "cipher"], 2000, 0.3, seed=6, held_out=300)
    assert again.read_text() == path.read_text() != other.read_text()


def test_generate_is_greedy_or_the_model_itself(tmp_path):
    make_tiny_model(tmp_path, tokenizer=tasks.tokenizer(), initializer_range=0.5)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    prompts = [tasks.prompt("upper", word) for word in tasks.held_out_words(4)]
    greedy = runs.generate(model, tokenizer, prompts, 0.0, seed=0)
    for text, answer in zip(prompts, greedy, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        while ids.shape[1] < len(tokenizer(text).input_ids) + tasks.LENGTH + 2 and ids[0, -1] != tokenizer.eos_token_id:
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == text + answer
    before = torch.get_rng_state()
    sampled = [runs.generate(model, tokenizer, prompts, 1.0, seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["known=lower"], "known=lower.*upper, copy"),
        (["new=upper"], "both upper"),
        (["noise=1"], "noise=1"),
        (["objectives.a/b.objective.name=nll"], "a/b"),
        (["sedes=[1]"], "sedes"),
        (["seeds=[a]"], "seeds"),
        (["finetune.train.max_steps=0"], r"finetune\.train\.max_steps"),
    ],
)
def test_bad_settings_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        quickstart_settings.load([CONFIG, *overrides])
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        quickstart_settings.load(["none.yaml"])


def test_shipped_configuration_is_the_protocol(tmp_path):
    """Every run of the shipped file is a configuration that the trainer accepts, and the schedule goes from NLL to -p and nothing else."""
    settings = quickstart_settings.load([CONFIG])
    planned = runs.prepare(settings, tmp_path)
    assert len(planned) == len({run.folder for run in planned}) == 18
    for run in planned:
        config = configuration.load([f"{run.folder}.yaml"])
        assert config.seed == run.seed
        assert Path(config.data.path).name == f"{run.task}-{run.seed}.jsonl"
    controller = configuration.load([f"{tmp_path}/cipher-alpha_0_to_1-2.yaml"]).controller
    assert (controller.name, controller.parameter, controller.start, controller.end) == ("linear", "alpha", 0.0, 1.0)
    assert (controller.begin, controller.finish) == (0.0, 1.0)


def test_bad_key_of_the_trainer_is_refused_before_anything_runs(tmp_path, capsys):
    assert main([CONFIG, f"run_dir={tmp_path}", "finetune.train.lrr=1"]) == 2
    captured = capsys.readouterr()
    assert "did you mean train.lr?" in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_end_to_end_then_one_more_objective(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(REPO)
    small = ["run_dir=" + str(tmp_path / "demo"), "seeds=[3]", "held_out=8", "pretrain.train.max_steps=3", "finetune.train.max_steps=2"]
    small += ["workers=1", "pretrain.log.every=1", "model.hidden=16", "model.layers=1"]
    assert main([CONFIG, *small]) == 0
    out, err = capfd.readouterr()
    assert "step 3/3" in err, "pretraining shows the trainer's progress"
    assert "6/6" in out
    assert "alpha_0_to_1" in out
    folder = tmp_path / "demo"
    with (folder / "results.csv").open() as file:
        found = {(row["task"], row["label"], row["seed"]) for row in csv.DictReader(file)}
    assert found == {(task, label, "3") for task in ("upper", "cipher") for label in ("nll", "neg_p", "alpha_0_to_1")}
    assert json.loads((folder / "results.json").read_text())["environment"]["machine"]
    assert "| (untouched)" in (folder / "results.md").read_text()
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    AutoModelForCausalLM.from_pretrained(folder / "cipher-nll-3" / "final")

    trained = (folder / "cipher-nll-3" / "metrics.jsonl").read_text()
    assert main([CONFIG, *small, "objectives.deft.objective.name=deft"]) == 0
    assert "8/8" in capfd.readouterr().out
    assert (folder / "cipher-nll-3" / "metrics.jsonl").read_text() == trained, "a finished run is not run again"
    assert main([CONFIG, *small, "noise=0.1"]) == 2
    assert "another noise" in capfd.readouterr().err
