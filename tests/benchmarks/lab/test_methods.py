"""Methods of a file of one's own, whose objective and controller are one's own too."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.lab import fingerprint
from benchmarks.lab.__main__ import main
from tests.benchmarks.lab.test_runs import a_run
from tests.conftest import REPO

SOURCE = """
import torch
from adaptsft.controllers.base import Controller


def half(logp, alpha):
    return -torch.exp(alpha * logp / 2).detach() * logp


class Rises(Controller):
    objective = "lab_mine:half"

    def update(self, state, statistics, progress):
        return {"alpha": state["alpha"] + 0.25}
"""
METHODS = {
    "mine": {"objective": {"name": "lab_mine:half", "alpha": 1}},
    "mine_rising": {"controller": {"name": "lab_mine:Rises"}},
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    (tmp_path / "lab_mine.py").write_text(SOURCE)
    # as methods.yaml is written: a name with a colon, within braces
    lines = [f"  {name}: {json.dumps(keys)}" for name, keys in METHODS.items()]
    text = "methods:\n" + re.sub('"', "", "\n".join(lines))
    assert yaml.safe_load(text) == {"methods": METHODS}
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_lab_of_ones_own_methods(place, capsys):
    train = {"global_batch_size": 4, "device": "cpu"}
    content = {
        "families": ["facts"],
        "regimes": ["many_valid"],
        "methods": ["alpha_0"],
        "seeds": [0],
        "items": 8,
        "workers": 1,
        "model": {"arch": "llama", "hidden": 16, "layers": 1, "heads": 2},
        "pretrain": {"data": {"max_length": 128}, "train": train | {"max_steps": 2}},
        "finetune": {"data": {"max_length": 128}, "train": train | {"max_steps": 3, "lr": 1e-3}},
    }
    (place / "small.yaml").write_text(yaml.safe_dump(content))
    command = ["--preset", "small.yaml", "--method-file", "mine.yaml"]
    assert main([*command, "--out", "out"]) == 0
    assert "2 runs, 0 of them found" in capsys.readouterr().out
    results = {path.stem: json.loads(path.read_text()) for path in Path("out").rglob("mine*.json")}
    assert {*results} == {"mine-0", "mine_rising-0"}
    assert results["mine_rising-0"]["curves"]["alpha"] == [0.0, 0.25, 0.5]
    assert results["mine-0"]["keys"]["objective"]["name"] == "lab_mine:half"

    both = [*command, "--methods", "mine", "alpha_1"]
    assert main([*both, "--out", "out"]) == 0
    assert "2 runs, 1 of them found" in capsys.readouterr().out
    assert main([*both, "--out", "fast", "--fast"]) == 0
    capsys.readouterr()
    for metric in ("sampled", "entropy", "train_mean_p"):
        (one,) = Path("fast").rglob("mine-0.json")
        assert json.loads(one.read_text())[metric] == pytest.approx(
            results["mine-0"][metric], rel=1e-4
        )


def test_files_of_methods_that_cannot_work_are_refused(place, capsys):
    for text, words in (
        ("methods: {auto: {}}", ["mine.yaml", "auto is taken"]),
        ("oracle: [alpha_0]", ["mine.yaml: oracle", "leave it out"]),
        ("methods: {m: {objective: {name: lab_mine:hlf}}}", ["method m", "did you mean half?"]),
        ("methods: {m: {controller: {name: lab_mine:Rise}}}", ["did you mean Rises?"]),
    ):
        (place / "mine.yaml").write_text(text)
        assert main(["--method-file", "mine.yaml", "--methods", "m", "--out", "out"]) == 2
        error = capsys.readouterr().err
        assert all(word in error for word in words), error
    assert not (place / "out").exists()


@pytest.mark.nightly
def test_the_source_is_part_of_a_results_fingerprint(place):
    """Of an objective, of the base of a threshold, of a controller, and of the objective that it
    acts through; and of nothing else."""
    assert fingerprint.users_code({"objective": {"name": "alpha"}, "train": {}}) == []
    train = {"train": {"max_steps": 3, "global_batch_size": 4}}
    assert a_run(keys=METHODS["mine"] | train).fingerprint() != a_run(keys=train).fingerprint()
    masked = {"objective": {"name": "threshold", "base": "lab_mine:half"}}
    script = (
        "import json, sys\n"
        "from tests.benchmarks.lab.test_runs import a_run\n"
        "for keys in json.loads(sys.argv[1]): print(a_run(keys=keys).fingerprint())\n"
    )
    asked = [keys | train for keys in (*METHODS.values(), masked, {"objective": {"name": "nll"}})]

    def fingerprints() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(asked)],
            cwd=place,
            env=os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    before = fingerprints()
    assert len({*before}) == 4 and fingerprints() == before
    (place / "lab_mine.py").write_text(f"{SOURCE}# edited\n")
    assert [one == other for one, other in zip(before, fingerprints(), strict=True)] == [
        False,
        False,
        False,
        True,
    ]
