"""What the report warns of."""

import json
import shutil

from adaptsft.analysis.report.findings import repeats
from tests.analysis.report.pages import lines_of, report


def test_what_is_worth_a_look_is_said(runs, tmp_path):
    """The same run with other numbers in its files: each accident is named, and not before it
    happens."""
    run = tmp_path / "accidents"
    shutil.copytree(runs[0], run)
    first, *_, last = lines_of(runs[0] / "metrics.jsonl")
    rows = [
        (last if step < 25 else first)
        | {"step": step, "grad_norm": 7.0, "weight": 0.01, "skipped": step == 9}
        for step in range(1, 31)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, *_, after = lines_of(runs[0] / "eval.jsonl")
    turned = [after | {"step": 0}, after | {"step": 15}, before | {"step": 30}]
    tasks = {"step": 30, "tasks": {"gsm8k": {"truncated": 0.5, "entropy": 0.12}}}
    (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*turned, tasks)))
    ill, well = report(tmp_path / "out", run).text, report(tmp_path / "well", runs[0]).text
    for warning in (
        "mean p fell on held-out data",
        "ungated NLL rose on held-out data",
        "held-out NLL was lowest at step 0",
        "the gate has all but closed: the objective's mean token weight is 0.01",
        "the gradient was clipped in 100% of the steps (median norm 7",
        "1 step was skipped because loss or gradient was not finite",
        "50% of the answers to gsm8k ran into eval.max_tokens at step 30",
        "gsm8k at step 30: the model's answers have 0.120 nats of entropy per token, below 0.2",
    ):
        assert warning in ill, warning
        assert warning[:25] not in well


def test_loops_are_told_from_prose():
    assert repeats("#### " + "0" * 60)
    assert repeats("The answer is 4. " + "I think that it is four. " * 9 + "I think")
    assert not repeats("A table: " + "=" * 20)
    assert not repeats(
        "Natalia sold 48 / 2 = 24 clips in May. Natalia sold 48 + 24 = 72 clips altogether in "
        "April and May. #### 72"
    )
