"""The whole path on a tiny model and small packages: warm-up, runs, report, and what is found
again; and the presets."""

import json
import os
import re
import signal
import threading
import time

import pytest
import yaml

from adaptsft.model.tiny import make_tiny_model
from benchmarks.lab import settings
from benchmarks.lab.__main__ import main
from benchmarks.lab.smollm2 import packages, tasks
from tests.benchmarks.lab.smollm2.small import write_packages
from tests.conftest import REPO

PRESETS = REPO / "configs" / "lab"


@pytest.mark.parametrize("name", ["smollm2.yaml", "smollm2_gpu.yaml"])
def test_presets_are_accepted(name):
    lab = settings.read(settings.Lab, PRESETS / name, [])
    methods = settings.read(settings.Methods, PRESETS / "methods.yaml", [])
    assert {"base", "alpha_0", "alpha_1", "deft"} <= settings.check(lab, methods).keys()
    assert len({tasks.find(regime)[0] for regime in lab.regimes}) >= 6


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("regimes=[plural_loud]", "plural_loud.*TASK_NOISE"),
        ("regimes=[]", "regimes must not be empty"),
        ("items=513", "items=513: 512 items"),
        ("finetune.train.max_steps=0", r"finetune\.train\.max_steps"),
        ("smollm2.warm_up.train.lrr=1", r"smollm2\.warm_up.*lrr"),
        ("smollm2.warm=1", "warm"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(override, message, tmp_path, capsys):
    assert main(["--preset", "smollm2", override, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """(folder of the lab with packages and a model in small, arguments of the command)"""
    monkeypatch.setattr(packages, "PACKAGES", ())  # those below are not the published ones
    monkeypatch.setattr(tasks, "HELD_OUT", 4)
    monkeypatch.setattr(tasks, "WARM_UP", 4)
    out = tmp_path / "out"
    write_packages(out / "packages")
    make_tiny_model(out / "pretrained", hidden=16, layers=1)
    train = {"global_batch_size": 4, "device": "cpu", "lr": 1e-3}
    content = {
        "regimes": ["plural_swapped"],
        "methods": ["base", "alpha_1"],
        "seeds": [0],
        "items": 4,
        "workers": 1,
        "smollm2": {"warm_up": {"train": train | {"max_steps": 4}}},
        "finetune": {"train": train | {"max_steps": 2}},
    }
    preset = tmp_path / "small.yaml"
    preset.write_text(yaml.safe_dump(content))
    return out, ["--preset", str(preset), "--out", str(out)]


def test_from_packages_to_the_report(small, capsys):
    out, command = small
    assert main(command) == 0
    assert "2 runs, 0 of them found" in capsys.readouterr().out
    folder = out / "results" / "smollm2" / "plural_swapped"
    base, tuned = (
        json.loads((folder / f"{name}-0.json").read_text()) for name in ("base", "alpha_1")
    )
    assert base["train_mean_p"] != tuned["train_mean_p"]
    assert tuned["curves"]["step"] == [1, 2] and base["curves"] == {}
    assert tuned["parts"]["plural"].keys() >= {"greedy", "sampled", "pass_at_8", "entropy", "k"}
    assert not list((out / "runs").rglob("*.safetensors")), "trained models are removed"
    assert re.search(r"\| plural +\| 0\.\d\d", (out / "base.md").read_text())
    assert "smollm2" in (out / "results.md").read_text()

    weights = (out / "warm_up" / "final" / "model.safetensors").stat().st_mtime_ns
    assert main([*command, "finetune.train.lr=2e-3"]) == 0
    assert "2 runs, 1 of them found" in capsys.readouterr().out, "the base is trained by nothing"
    assert (out / "warm_up" / "final" / "model.safetensors").stat().st_mtime_ns == weights
    (out / "base.md").unlink()
    assert main(["--report", str(out), "--methods", "alpha_1"]) == 0
    assert (out / "base.md").is_file()


def test_a_signal_ends_it_and_leaves_no_result(small, capsys):
    """The trainer takes the signal, and stops between two steps."""
    out, command = small
    log = out / "runs" / "smollm2" / "plural_swapped" / "alpha_1-0.log"

    def stop():
        while not (log.is_file() and "\nplan: " in log.read_text()):
            time.sleep(0.05)
        time.sleep(1)  # by then it listens
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=stop, daemon=True)
    sender.start()
    assert main([*command, "finetune.train.max_steps=5000"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list((out / "results").rglob("alpha_1-0.json"))
