"""What counts as a disagreement of graders: the same to `score` and to `compare`."""

import json
from pathlib import Path

import pytest

from adaptsft.evals import result, samples
from tests.evals.conftest import executes
from tests.evals.pipeline import evals


@executes
def test_tests_of_programs_are_compared(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that passes the base tests and fails at -1: `base` and `plus` differ."""
    pytest.importorskip("tree_sitter", reason="pip install 'adaptsft[eval]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(data_dir / "cache"))
    (data_dir / "one.yaml").write_text(
        "extends: humaneval\nitems: 1\n"
        "sources: [{file: HumanEvalPlus-v9.9.9.jsonl.gz, reader: evalplus}]\n"
    )
    program = "    return [2 * x] if x > 0 else []\n"
    (data_dir / "replay.jsonl").write_text(
        json.dumps({"item_id": "HumanEval/0", "output": program})
    )
    settings = ["--tasks", data_dir / "one.yaml", "--data-dir", data_dir, "--backend", "replay"]
    settings += ["--replay", data_dir / "replay.jsonl", "--out", data_dir / "out"]
    assert evals("run", *settings, "--allow-code-exec", "--workers", 1) == 0
    capsys.readouterr()
    assert evals("compare", data_dir / "out") == 0
    assert "base right, plus wrong: 1" in capsys.readouterr().out
    found = samples.read_json(data_dir / "out" / "one" / "greedy" / "result.json")
    assert found["disagreements"] == 1


def test_no_score_is_no_verdict() -> None:
    scores = [{"x": True, "y": None, "z": 0.5}, {"x": False, "y": None}, {"x": False, "y": True}]
    records = [{"scores": one} for one in scores]
    graders = result.right_or_wrong(records)
    assert graders == ["x", "y"]
    assert [result.differ(record, graders) for record in records] == [False, False, True]
