"""What a user may ask for: refusals that name the fix, and warnings of what has no effect."""

import pytest

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.errors import ConfigError, warn
from tests.conftest import REPO

BASE = ["run_dir=r", "model.path=m", "data.path=d.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train.lrr=1"], ["train.lrr", "train.lr"]),
        (["lr=1e-4"], ["lr", "did you mean train.lr?"]),
        (["objektive.name=nll"], ["objektive", "objective"]),
        (["train.lr=fast"], ["train.lr", "fast"]),
        (["train.micro_batch_size=large"], ["train.micro_batch_size=large", "must be auto, or"]),
        (
            ["train.loss_reduction=micro_batch", "data.packing=false"],
            ["train.micro_batch_size is part of what is learned", "set a number"],
        ),
        (["objective.name=neg_pp"], ["objective.name=neg_pp", "did you mean neg_p"]),
        (["objective.name=alpha", "objective.params.gamma=2"], ["gamma", "alpha"]),
        (
            ["objective.name=threshold", "objective.lower=0.9", "objective.upper=0.1"],
            ["0.9", "0.1"],
        ),
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
        (["train.compile=ture"], ["train.compile=ture", "auto, true, false", "did you mean true?"]),
        (["train.lr_schedule=cosin"], ["train.lr_schedule=cosin", "did you mean cosine?"]),
        (["train.betas=[0.9]"], ["train.betas"]),
        (["train.global_batch_size=0"], ["train.global_batch_size=0", "at least 1"]),
        (["eval.every=5"], ["eval.every", "data.validation_path"]),
        (["data.validation_path=v.jsonl", "data.validation_examples=5"], ["not both"]),
        (["data.sources=[{path: a}]"], ["data.path", "data.sources"]),
        (["data.prompt_template=Question"], ["{prompt}"]),
        (["model.attention=flash", "train.device=cpu"], ["model.attention=flash", "GPU"]),
        (["model.attention=eager", "data.packing=true"], ["set data.packing=false"]),
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


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (
            ["train.decay_ratio=0.5"],
            "train.decay_ratio=0.5 has no effect with train.lr_schedule=cosine; it is read by wsd",
        ),
        (
            ["train.lr_schedule=constant", "train.lr_min_ratio=0.1"],
            "train.lr_min_ratio=0.1 has no effect with train.lr_schedule=constant; it is read by "
            "cosine, linear, wsd",
        ),
        (
            ["objective.alpha=0.5"],
            "objective.alpha=0.5 has no effect with objective.name=nll; it is read by alpha, "
            "mixture, concentration",
        ),
    ],
)
def test_a_setting_without_effect_is_warned_of(arguments, warning, capsys, monkeypatch):
    """Those of the groups objective and controller: test_build.py and test_build.py."""
    warn.cache_clear()
    load_config([*BASE, *arguments])
    assert capsys.readouterr().err.startswith(f"warning: {warning}")
    warn.cache_clear()
    monkeypatch.setenv("RANK", "1")
    load_config([*BASE, *arguments])
    assert capsys.readouterr().err == "", "one rank prints it"


# that one is read by benchmarks.lab.quickstart
CONFIGS = sorted(
    path for path in (REPO / "configs").glob("*.yaml") if path.name != "quickstart.yaml"
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_load(path):
    assert isinstance(load_config([str(path), *BASE]), Config)
