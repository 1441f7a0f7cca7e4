"""What a user may ask for: merging, refusals that name the fix, and the generated reference."""

import pytest

from adaptsft.config.load import differences, read_config, save_config
from adaptsft.config.reference import help_text, markdown
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config, all_keys
from adaptsft.errors import ConfigError
from tests.conftest import REPO

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


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train.lrr=1"], ["train.lrr", "train.lr"]),
        (["lr=1e-4"], ["lr", "did you mean train.lr?"]),
        (["objektive.name=nll"], ["objektive", "objective"]),
        (["train.lr=fast"], ["train.lr", "fast"]),
        (["objective.name=neg_pp"], ["objective.name=neg_pp", "did you mean neg_p"]),
        (["objective.name=alpha", "objective.params.gamma=2"], ["gamma", "alpha"]),
        (["objective.alpha=0.5"], ["objective.alpha=0.5", "no effect", "nll"]),
        (["objective.lower=0.2"], ["objective.lower=0.2", "threshold"]),
        (
            ["objective.name=threshold", "objective.lower=0.9", "objective.upper=0.1"],
            ["0.9", "0.1"],
        ),
        (["objective.normalizer=kept"], ["objective.normalizer=kept", "use all"]),
        (["controller.name=linear"], ["controller.name=linear", "alpha", "objective.name=alpha"]),
        (["controller.name=linnear"], ["linnear", "did you mean linear"]),
        (
            ["controller.name=linear", "objective.name=alpha", "objective.alpha=0.3"],
            ["objective.alpha=0.3", "controller.start"],
        ),
        (
            [
                "controller.name=linear",
                "objective.name=threshold",
                "controller.parameter=lower",
                "controller.end=2",
            ],
            ["controller.end=2"],
        ),
        (
            [
                "controller.name=linear",
                "objective.name=alpha",
                "controller.begin=0.9",
                "controller.finish=0.1",
            ],
            ["0.9", "0.1"],
        ),
        (["train.lr_schedule=cosin"], ["train.lr_schedule=cosin", "did you mean cosine?"]),
        (["train.betas=[0.9]"], ["train.betas"]),
        (["train.global_batch_size=0"], ["train.global_batch_size=0", "at least 1"]),
        (["eval.every=5"], ["eval.every", "data.validation_path"]),
        (["data.validation_path=v.jsonl", "data.validation_examples=5"], ["not both"]),
        (["data.sources=[{path: a}]"], ["data.path", "data.sources"]),
        (["data.prompt_template=Question"], ["{prompt}"]),
        (["model.attention=flash", "train.device=cpu"], ["model.attention=flash", "GPU"]),
        (["--lr=3"], ["--lr", "key=value"]),
        (["missing.yaml"], ["missing.yaml", "no such"]),
        (["objective=neg_p"], ["objective is a group", "objective.name=neg_p"]),
        (["train.learning_rate=1e-3"], ["train.learning_rate", "did you mean train.lr?"]),
        (["model.freeze=embed"], ["model.freeze=embed", "must be a list"]),
        (["data.fields=prompt:question"], ["must be a mapping"]),
        (["data.sources={path: a}"], ["must be a list"]),
        (["data.fields={prompt: prompt, completion: yes}"], ["completion", "quotes"]),
        (["data.prompt_template=Q: {prompt}\\nA: "], ["backslash"]),
        (["train.lr=.inf"], ["train.lr=inf", "finite"]),
        (["controller.end=0.5"], ["controller.name=fixed"]),
        (["train.decay_ratio=0.5"], ["train.lr_schedule=cosine", "wsd"]),
        (
            ["train.lr_schedule=constant", "train.lr_min_ratio=0.1"],
            ["train.lr_min_ratio=0.1", "constant"],
        ),
        (
            ["train.lr_schedule=constant", "controller.name=lr", "objective.name=alpha"],
            ["controller.name=lr", "constant"],
        ),
        (
            [
                "objective.name=threshold",
                "objective.lower=0.1",
                "objective.normalizer=kept",
                "objective.unit_mass=true",
            ],
            ["objective.unit_mass=true", "objective.normalizer=all"],
        ),
        (["objective.unit_mass=true"], ["objective.unit_mass=true", "objective.name=nll"]),
        (["model.freeze=['(']"], ["regular expression"]),
        (["seed=-1"], ["seed=-1"]),
        (["run_dir=${nowhere}"], ["nowhere"]),
        (["run_dir="], ["run_dir"]),
        (["model.path="], ["model.path"]),
        (["train.max_steps=0", "train.epochs=0"], ["train.max_steps"]),
    ],
)
def test_refusals_name_key_value_and_fix(arguments, parts):
    with pytest.raises(ConfigError) as caught:
        load_config([*BASE, *arguments])
    for part in parts:
        assert part in str(caught.value)


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


def test_help_and_reference_name_every_key():
    text, document = help_text(), (REPO / "docs" / "config.md").read_text()
    for name, declared, _ in all_keys():
        assert declared.metadata["help"]
        assert f"  {name}  [" in text
    assert document.strip() == markdown().strip(), (
        "run: python -m adaptsft.config.reference > docs/config.md"
    )


CONFIGS = sorted(
    path for path in (REPO / "configs").glob("*.yaml") if path.name != "quickstart.yaml"
)  # that one is read by benchmarks.lab.quickstart


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_load(path):
    assert isinstance(load_config([str(path), *BASE]), Config)
