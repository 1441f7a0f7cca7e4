"""A run: its budget, and for which other run its result may stand."""

import json
import random
from pathlib import Path

from benchmarks.lab import families, runs, tasks
from benchmarks.lab.bases import Base
from benchmarks.lab.regimes import REGIMES, Budget, find
from benchmarks.lab.runs import Run
from benchmarks.lab.tasks import Noise


def a_run(folder: Path = Path("x"), **changes) -> Run:
    keys = {
        "train": {"max_steps": 100, "global_batch_size": 32},
        "objective": {"name": "alpha", "alpha": 0.5},
    }
    given = {
        "family": "letters",
        "regime": "ms_noisy",
        "method": "m",
        "seed": 0,
        "items": 8,
        "keys": keys,
        "base": Base(0),
        "model": "b",
    }
    return Run(folder, **(given | changes))


def test_a_result_is_used_for_the_same_run_only(tmp_path, monkeypatch):
    run = a_run(tmp_path)
    other_alpha = run.keys | {"objective": {"name": "alpha", "alpha": 0.4}}
    others = [
        a_run(tmp_path, **change)
        for change in (
            {"seed": 1},
            {"items": 9},
            {"model": "c"},
            {"regime": "ms_clean"},
            {"regime": "ms_noisy@60"},
            {"regime": "ms_noisy@2epochs"},
            {"lr": 1e-2},
            {"keys": other_alpha},
        )
    ]
    assert len({run.fingerprint(), *(other.fingerprint() for other in others)}) == 9
    assert run.finished() is None
    run.result.parent.mkdir(parents=True)
    run.result.write_text(json.dumps({"fingerprint": run.fingerprint()}))
    assert run.finished() is not None
    assert a_run(tmp_path, items=9).finished() is None
    run.result.write_text('{"fingerprint": "torn')
    assert run.finished() is None

    before = run.fingerprint()
    monkeypatch.setattr(runs, "CODE", "edited")
    assert run.fingerprint() != before, "other code makes its results stale"


def test_regimes_and_budgets():
    assert find("mw_noisy@60") == (REGIMES["mw_noisy"], Budget(steps=60))
    few = a_run(regime="mw_noisy@60")
    assert (few.steps, few.examples, few.trainer_keys["train"]["max_steps"]) == (60, 60 * 32, 60)
    twice = a_run(regime="mw_noisy@2epochs")
    assert (twice.steps, twice.examples) == (100, 50 * 32), "half as many, seen twice"
    generator = random.Random(0)
    clean = {
        tasks.label(families.find("digits").strong, "123456", Noise(), generator) for _ in range(20)
    }
    assert clean == {("876543", "876543")}
