"""Merging of files and arguments, saved configurations, and keys of the release before."""

import json
import shutil
from pathlib import Path

import pytest

from adaptsft.config.load import differences, read_config, save_config
from adaptsft.config.resolve import load_config
from adaptsft.errors import ConfigError, warn
from adaptsft.train import train
from tests.runs import small_config

BASE = ["run_dir=r", "model.path=m", "data.path=d.jsonl"]


def test_yaml_then_arguments_the_later_wins(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "train: {lr: 1.0e-4, max_steps: 7}\nobjective: {name: focal, params: {gamma: 3}}\n"
    )
    config = load_config(
        [str(file), *BASE, "train.lr=2e-4", "data.fields={prompt: question, completion: answer}"]
    )
    assert (config.train.lr, config.train.max_steps, config.objective.params) == (
        2e-4,
        7,
        {"gamma": 3.0},
    )
    assert config.data.fields == {"prompt": "question", "completion": "answer"}


def test_a_file_extends_others(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.yaml").write_text(
        "model: {path: m}\ntrain: {lr: 1.0e-4, epochs: 3}\n"
    )
    (tmp_path / "parts" / "math.yaml").write_text(
        "extends: model.yaml\ndata: {path: d.jsonl}\ntrain: {lr: 2.0e-4}\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("extends: [parts/math.yaml]\nrun_dir: r\ntrain: {max_steps: 7}\n")
    config = load_config([str(recipe), "train.max_steps=8"])
    assert (config.model.path, config.data.path, config.train.lr) == ("m", "d.jsonl", 2e-4)
    assert (config.train.epochs, config.train.max_steps) == (3, 8)

    (tmp_path / "parts" / "model.yaml").write_text("extends: ../recipe.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config([str(recipe)])
    recipe.write_text("extends: parts/other.yaml\n")
    with pytest.raises(ConfigError, match=r"recipe.yaml: extends: no such file: .*other.yaml"):
        load_config([str(recipe)])
    recipe.write_text("extends: parts/math.yaml\n")
    (tmp_path / "parts" / "model.yaml").write_text("train: {lrr: 1}\n")
    with pytest.raises(ConfigError, match=r"model\.yaml: unknown key train\.lrr"):
        load_config([str(recipe)])


@pytest.mark.parametrize(
    "template", ["{prompt}", "Q: {prompt} ", "[{prompt}]", "{prompt} # 1", "a: b: {prompt}"]
)
def test_text_needs_no_second_quotes(template):
    assert load_config([*BASE, f"data.prompt_template={template}"]).data.prompt_template == template
    assert (
        load_config([*BASE, 'data.prompt_template="{prompt}\\n"']).data.prompt_template
        == "{prompt}\n"
    )
    assert load_config([*BASE, "run_dir=007", "model.path=1e3"]).run_dir == "007"


def test_several_sources(tmp_path):
    config = load_config(
        [
            "run_dir=r",
            "model.path=m",
            "data.sources=[{path: a.jsonl, weight: 2}, {path: b.jsonl, name: b}]",
        ]
    )
    assert [(s.path, s.weight, s.name) for s in config.data.sources] == [
        ("a.jsonl", 2.0, ""),
        ("b.jsonl", 1.0, "b"),
    ]


def test_a_mapping_replaces_the_one_before_it_and_a_key_adds_to_it(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("data: {path: a.jsonl, fields: {prompt: question, completion: answer}}\n")
    common = [str(file), "run_dir=r", "model.path=m"]
    assert load_config([*common, "data.fields={messages: chat}"]).data.fields == {
        "messages": "chat"
    }
    assert load_config([*common, "data.fields.id=none"]).data.fields == {
        "prompt": "question",
        "completion": "answer",
        "id": "none",
    }
    assert (
        load_config(
            [*common, "data.path=", "data.fields={}", "data.sources=[{path: b.jsonl}]"]
        ).data.path
        == ""
    )


def test_broken_yaml_names_the_file(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("train: {lr: 1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config([str(file)])


def test_saved_and_read_again_is_the_same(tmp_path):
    config = load_config([*BASE, "objective.params.gamma=2", "objective.name=focal"])
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    other = load_config([*BASE, "train.lr=1", "log.every=3"])
    changes = differences(load_config(BASE), other)
    assert changes == ["train.lr: 1e-05 -> 1.0"], (
        "what cannot change the result may differ on resume"
    )


# arguments of the release before, and what they are now
OLD = [
    ("strict_reproduction.summed_micro_batches", "true", "train.loss_reduction=micro_batch"),
    ("strict_reproduction.summed_micro_batches", "false", "train.loss_reduction=step"),
    ("strict_reproduction.bf16_masters", "true", "model.param_dtype=bf16"),
    ("strict_reproduction.bf16_masters", "false", "model.param_dtype=fp32"),
    ("log.tensorboard", "true", "log.trackers=[tensorboard]"),
    ("log.tensorboard", "false", "log.trackers=[]"),
]


@pytest.mark.parametrize(("old", "value", "new"), OLD)
@pytest.mark.parametrize("in_file", [False, True])
def test_keys_of_the_release_before_are_accepted_with_a_message(
    tmp_path, capsys, old, value, new, in_file
):
    warn.cache_clear()
    same = [*BASE, "data.packing=false", "train.micro_batch_size=1"]
    arguments = [*same, f"{old}={value}"]
    if in_file:
        group, key = old.split(".")
        (tmp_path / "old.yaml").write_text(f"{group}: {{{key}: {value}}}\n")
        arguments[-1] = str(tmp_path / "old.yaml")
    assert load_config(arguments) == load_config([*same, new])
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning == f"warning: {arguments[-1]}: {old}={value} is called {new} now"


def test_an_old_key_with_another_value_is_refused():
    with pytest.raises(ConfigError, match=r"bf16_masters=maybe.*use model\.param_dtype"):
        load_config([*BASE, "strict_reproduction.bf16_masters=maybe"])
    with pytest.raises(ConfigError, match="unknown key strict_reproduction"):
        load_config([*BASE, "strict_reproduction.bf16=1"])


# as 0.1.0 at 287998c saved it: every key of then, those that are renamed or gone among them
SAVED = Path(__file__).with_name("saved_by_0.1.0.yaml").read_text()


def test_a_saved_configuration_of_the_release_before_is_that_of_today(tmp_path):
    """What resuming compares: no difference for the run that was meant, one for another."""
    (tmp_path / "config.yaml").write_text(SAVED)
    saved = read_config(tmp_path / "config.yaml")
    assert (saved.train.loss_reduction, saved.model.param_dtype) == ("micro_batch", "fp32")
    assert saved.train.compile is False, "it was a boolean then, and may be one still"
    (tmp_path / "config.yaml").write_text(SAVED.replace("base_logp: ''", "base_logp: p.st"))
    with pytest.raises(ConfigError, match=r"base_logp=p\.st: this key is gone"):
        read_config(tmp_path / "config.yaml")


def test_an_old_key_beside_its_new_name_is_refused(tmp_path):
    (tmp_path / "both.yaml").write_text(
        "strict_reproduction: {bf16_masters: true}\nmodel: {param_dtype: fp32}\n"
    )
    with pytest.raises(ConfigError, match="contradict each other"):
        load_config([*BASE, str(tmp_path / "both.yaml")])


def test_a_run_folder_of_the_release_before_is_resumed(tmp_path, tiny_model):
    """With the arguments of that time: its config.yaml has the old keys."""
    settings = {"data__packing": False, "train__global_batch_size": 4, "train__max_steps": 2}
    settings |= {"train__loss_reduction": "micro_batch", "checkpoint__every": 1}
    config = small_config(tmp_path, tiny_model(), **settings)
    train(config)
    run = tmp_path / "run"
    expected = (run / "final" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "step_00000002")
    places = {"RUN": run, "MODEL": tiny_model(), "DATA": tmp_path / "data.jsonl"}
    text = SAVED.replace("CACHE", str(tmp_path / "cache"))
    for name, path in places.items():
        text = text.replace(f": {name}\n", f": {path}\n")
    (run / "config.yaml").write_text(text)
    del settings["train__loss_reduction"]
    settings["strict_reproduction__summed_micro_batches"] = True
    train(small_config(tmp_path, tiny_model(), **settings))
    assert (run / "final" / "model.safetensors").read_bytes() == expected
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
