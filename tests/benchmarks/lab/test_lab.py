"""The lab's command: presets, what it refuses, and small experiments from end to end."""

import json
import re
from pathlib import Path

import pytest
import yaml

from adaptsft.model.tiny import make_tiny_model
from benchmarks.lab import families, real, settings, tasks
from benchmarks.lab.__main__ import main
from benchmarks.lab.regimes import CLEAN
from tests.conftest import REPO

PRESETS = REPO / "configs" / "lab"


@pytest.mark.parametrize("name", ["cpu.yaml", "full.yaml", "gpu.yaml", "paper.yaml", "real.yaml"])
def test_presets_are_accepted(name):
    """Every method of every preset is a configuration that the trainer takes."""
    lab = settings.read(settings.Lab, PRESETS / name, [])
    methods = settings.read(settings.Methods, PRESETS / "methods.yaml", [])
    keys = settings.check(lab, methods)
    assert set(methods.oracle) <= set(keys)
    for method, of in keys.items():
        if method in methods.oracle:
            assert of["objective"] == {
                "name": "alpha",
                "alpha": float(method.removeprefix("alpha_")),
            }
    if name == "real.yaml":
        assert len(real.asked(lab, keys, Path("x"))) == len(keys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("regimes=[ms_loud]", "ms_loud.*ms_clean"),
        ("regimes=[ms_clean@longer]", "ms_clean@longer.*@60.*@2epochs"),
        ("regimes=[ms_clean@0]", "ms_clean@0"),
        ("bases=[0@101]", "bases: '0@101'.*0@90"),
        ("lrs=[1e-3, 0.0]", "lrs.*above 0"),
        ("lrs=[1e-3, 1e-2]", "tune_on"),
        ("tune_on=[facts]", "tune_on: 'facts'.*letters"),
        ("families=[words]", "words.*choose one of: letters, facts"),
        ("methods=[nil]", "nil.*alpha_0"),
        ("families=[letters, letters]", "two of the name letters"),
        ("seeds=[]", "seeds"),
        ("items=0", "items=0"),
        ("finetune.train.max_steps=0", r"finetune\.train\.max_steps"),
        ("finetune.train.lrr=1", "finetune.*lrr"),
        ("itmes=3", "itmes"),
    ],
)
def test_bad_presets_are_refused_before_anything_runs(override, message, tmp_path, capsys):
    assert main([override, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_real_model_is_not_measured_for_methods_that_read_it(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--preset", "smollm2", "--methods", "prift_prob", "--out", str(out)]) == 2
    assert "prift_prob has the base model measured" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.nightly
def test_the_lab_end_to_end_then_one_method_changed(tmp_path, capsys):
    small = tmp_path / "small.yaml"
    train = {"global_batch_size": 4, "device": "cpu"}
    pretrain = {"data": {"max_length": 128}, "train": train | {"max_steps": 2}}
    finetune = {"data": {"max_length": 128}, "train": train | {"max_steps": 3, "lr": 1e-3}}
    content = {
        "families": ["facts"],
        "regimes": ["mix_strong_weak", "many_valid"],
        "methods": ["base", "alpha_0", "alpha_1", "linear"],
        "seeds": [0],
        "items": 8,
        "workers": 1,
        "model": {"arch": "llama", "hidden": 16, "layers": 1, "heads": 2},
        "pretrain": pretrain,
        "finetune": finetune,
    }
    small.write_text(yaml.safe_dump(content))
    command = ["--preset", str(small), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "8 runs, 0 of them found" in capsys.readouterr().out
    folder = tmp_path / "out" / "results" / "facts"
    moved, many = (
        json.loads((folder / regime / "base0" / f"{method}-0.json").read_text())
        for regime, method in (("mix_strong_weak", "linear"), ("many_valid", "base"))
    )
    assert moved["curves"]["sources"]["weak"]["alpha"] == [0.0, 0.5, 1.0]
    assert set(moved["parts"]) == set(moved["sources"]) == {"strong", "weak"}
    assert (moved["base"], moved["strength"], moved["lr"], many["lr"]) == (0, None, 1e-3, None)
    assert set(moved["base_scores"]) == {"<origin>", "<trade>", "<house>", "<guild>", "<patron>"}
    assert "diversity" in many["parts"]["open"]
    assert not any((tmp_path / "out" / "runs").rglob("*.safetensors")), "trained models are removed"
    assert "| linear" in (tmp_path / "out" / "results.md").read_text()
    for picture in ("gaps", "trajectories", "inversion"):
        assert (tmp_path / "out" / f"{picture}.png").is_file()

    assert main([*command, "--methods", "base", "alpha_0", "linear", "finetune.train.lr=2e-3"]) == 0
    assert "6 runs, 2 of them found" in capsys.readouterr().out, (
        "the untouched model does not depend on the learning rate"
    )
    assert main(["--report", str(tmp_path / "out")]) == 0

    capsys.readouterr()
    fast = [*command[:2], "--fast", "--out", str(tmp_path / "fast")]
    assert main(fast) == 0
    assert main(fast) == 0
    assert "8 runs, 8 of them found" in capsys.readouterr().out
    results = (tmp_path / "fast" / "results").rglob("*.json")
    for one in map(json.loads, map(Path.read_text, results)):
        path = folder / one["regime"] / "base0" / f"{one['method']}-0.json"
        if one["method"] in ("alpha_1", "base"):  # the others' learning rate was changed above
            for metric in ("sampled", "pass_at_8", "entropy", "train_mean_p"):
                assert one[metric] == pytest.approx(json.loads(path.read_text())[metric], rel=1e-4)

    assert main([*fast, "--methods", "prift_prob", "--regimes", "mix_strong_weak"]) == 0
    found = tmp_path / "fast" / "results" / "facts" / "mix_strong_weak" / "base0"
    prift = json.loads((found / "prift_prob-0.json").read_text())
    assert not prift["fast"], "the pretrained model was measured first, and the run stood alone"
    assert not any((tmp_path / "fast" / "runs").rglob("*.diagnosis")), (
        "what was measured is removed"
    )


@pytest.mark.slow
def test_a_real_model_by_commands(tmp_path, capsys):
    """The section `real`: trainings and evaluations are processes; the evaluator here is a line of
    Python."""
    family = families.find("letters")
    base = make_tiny_model(tmp_path / "base", hidden=16, layers=1)
    data = tasks.write_examples(
        tmp_path / "data.jsonl", family, [(family.strong, CLEAN)], 8, False, "x"
    )
    evaluator = tmp_path / "evaluate.py"
    evaluator.write_text(
        "import json, pathlib, sys\nmodel, out = map(pathlib.Path, sys.argv[1:])\nout.mkdir()\n"
        "value = float((model / 'final' / 'config.json').is_file())\n"
        "(out / 'all.json').write_text(json.dumps({'metrics': {'right': {'value': value}}}))\n"
    )
    preset = tmp_path / "preset.yaml"
    evaluate = ["python", str(evaluator), "{model}", "{out}"]
    source = {"path": str(data), "template": "plain", "cache_dir": str(tmp_path / "cache")}
    scores = {"greedy": "all.json", "sampled": "all.json"}
    regime = {"data": source, "evaluate": evaluate, "metric": "right", "scores": scores}
    train = {"max_steps": 1, "global_batch_size": 4, "device": "cpu"}
    content = {
        "methods": ["base", "alpha_1"],
        "seeds": [0],
        "finetune": {"train": train, "log": {"trackers": []}},
        "real": {"model": str(base), "regimes": {"words": regime}},
    }
    preset.write_text(yaml.safe_dump(content))
    command = ["--preset", str(preset), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    found = {
        name: json.loads((tmp_path / f"out/results/real/words/{name}-0.json").read_text())["greedy"]
        for name in ("base", "alpha_1")
    }
    assert found == {"base": 0.0, "alpha_1": 1.0}
    capsys.readouterr()
    assert main([*command, "--methods", "base", "real.regimes.words.metric=wrong"]) == 1
    assert "no number at metrics.wrong" in capsys.readouterr().out
