"""Scores of answers that have changed since are neither shown nor compared."""

import json
import shutil

import jsonschema

from adaptsft.evals import samples
from tests.evals.pipeline import BOTH, NEITHER, SCHEMA, evals


def test_scores_of_other_answers_are_left_out(evaluated, tmp_path, capsys):
    """A request failed and was asked again; then more items were asked for."""
    a = evaluated("a", [BOTH, None], data=3)
    b = evaluated("b", [NEITHER, BOTH], data=3)
    folder = a / "letters" / "greedy"
    result = json.loads((folder / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    command = f"python -m adaptsft.evals score {folder}"
    task = tmp_path / "data" / "letters"
    again = ["--tasks", task / "letters.yaml", "--data-dir", task, "--out", a]
    again += ["--backend", "replay", "--replay", tmp_path / "a.jsonl"]
    rows = [{"item_id": f"q{i}", "output": BOTH} for i in range(3)]

    def left_out() -> None:
        capsys.readouterr()
        assert evals("compare", a, b) == 3 and command in capsys.readouterr().err
        assert evals("report", a) == 3 and command in capsys.readouterr().err
        assert evals("report", "--compare", a, b) == 3 and command in capsys.readouterr().err
        shutil.copytree(b / "letters" / "greedy", a / "letters" / "T1")
        assert evals("report", a, "--to", tmp_path / "to") == 0
        said = f"left out: {folder}: was generated anew, or more of it, since it was scored"
        assert said in capsys.readouterr().err
        assert f"] {said}" in (tmp_path / "to" / "report.md").read_text()
        shutil.rmtree(a / "letters" / "T1")

    # the same command again changes nothing
    assert evals("generate", *again, "--limit", 2) == 0
    assert evals("compare", a, b) == 0 and evals("report", a) == 0
    # a replay file is known by its hash: the record that --retry-errors would append
    recorded = samples.Samples(folder)
    (failed,) = (one for one in recorded.records.values() if one["error"])
    recorded.add([failed | {"output": BOTH, "error": None, "finish_reason": "stop"}])
    left_out()
    assert evals("score", a) == 0 and evals("compare", a, b) == 0 and evals("report", a) == 0
    samples.write_lines(tmp_path / "a.jsonl", rows)
    asked = samples.read_json(folder / "run.json")
    samples.write_json(folder / "run.json", asked | {"item_ids": ["q0", "q1", "q2"]})
    left_out()


def test_what_is_not_scored_is_said(evaluated, tmp_path, capsys):
    run = evaluated("a", [BOTH])
    evaluated("a", [BOTH], task="other")
    (run / "other" / "greedy" / "result.json").unlink()
    assert evals("report", run) == 0
    said = f"left out: {run / 'other' / 'greedy'}: not scored yet: run `python -m adaptsft.evals"
    assert said in capsys.readouterr().err and said in (run / "report.md").read_text()


def test_another_limit_is_another_result(evaluated, tmp_path, capsys):
    run = evaluated("a", [BOTH, NEITHER, BOTH])
    task = tmp_path / "data" / "letters"
    again = ["--tasks", task / "letters.yaml", "--data-dir", task, "--out", run]
    again += ["--backend", "replay", "--replay", tmp_path / "a.jsonl"]
    for limit, code in ((2, 3), (3, 0)):
        assert evals("generate", *again, "--limit", limit) == 0
        assert evals("report", run) == code
        assert ("since it was scored" in capsys.readouterr().err) == bool(code)
    assert evals("generate", *again, "--limit", 1) == 0 and evals("score", run) == 0
    assert evals("report", run) == 0
    assert evals("generate", *again, "--limit", 3) == 0 and evals("report", run) == 3
