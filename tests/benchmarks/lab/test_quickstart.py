import csv
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from benchmarks.lab import settings
from benchmarks.lab.quickstart.__main__ import QuickStart, main
from tests.conftest import REPO

CONFIG = REPO / "configs" / "quickstart.yaml"


def test_shipped_configuration_is_one_that_the_trainer_takes():
    lab = settings.read(QuickStart, CONFIG, [])
    lab.methods = list(lab.objectives)
    keys = settings.check(lab, settings.Methods(methods=lab.objectives))
    assert keys["auto"]["controller"] == {"name": "auto"}, (
        "the default controller, with its own settings"
    )
    assert lab.regimes == ["ms_noisy", "mw_noisy_zipf"], (
        "a task that the model knows, and a new one"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("regimes=[lower]", "'lower'"),
        ("families=[letters,digits]", "takes one"),
        ("objectives.a/b.objective.name=nll", "a/b"),
        ("sedes=[1]", "sedes"),
        ("finetune.train.max_steps=0", "finetune.train.max_steps"),
        ("finetune.train.lrr=1", "lrr"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(override, message, tmp_path, capsys):
    assert main([str(CONFIG), f"run_dir={tmp_path / 'out'}", override]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == "" and not (tmp_path / "out").exists()


def test_without_a_configuration_it_explains_itself(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "configs/quickstart.yaml" in capsys.readouterr().out
    assert main(["none.yaml"]) == 2
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.slow
def test_end_to_end_then_one_more_objective(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(REPO)
    folder = tmp_path / "demo"
    small = [
        f"run_dir={folder}",
        "seeds=[3]",
        "items=8",
        "pretrain.train.max_steps=3",
        "finetune.train.max_steps=2",
    ]
    small += ["workers=1", "pretrain.log.every=1", "model.hidden=16", "model.layers=1"]
    assert main([str(CONFIG), *small]) == 0
    out, _ = capfd.readouterr()
    assert "step 3/3" in out, "pretraining shows the trainer's progress"
    assert "8/8" in out
    assert "| auto" in out
    with (folder / "results.csv").open() as file:
        found = {(row["regime"], row["method"], row["seed"]) for row in csv.DictReader(file)}
    assert found == {
        (regime, method, "3")
        for regime in ("ms_noisy", "mw_noisy_zipf")
        for method in ("base", "nll", "neg_p", "auto")
    }
    assert json.loads((folder / "results.json").read_text())["environment"]["machine"]
    assert "| (untouched)" in (folder / "results.md").read_text()
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    run = folder / "runs" / "letters" / "mw_noisy_zipf" / "base0" / "nll-3"
    AutoModelForCausalLM.from_pretrained(run / "final")
    suggested = next(line for line in out.splitlines() if "adaptsft.chat" in line).split()
    assert Path(suggested[suggested.index("--prompt") - 1]).is_dir(), (
        "the run that it suggests to talk to is there"
    )

    trained = (run / "metrics.jsonl").read_text()
    assert main([str(CONFIG), *small, "objectives.deft.objective.name=deft"]) == 0
    assert "2/2" in capfd.readouterr().out
    assert (run / "metrics.jsonl").read_text() == trained, "a finished run is not run again"
