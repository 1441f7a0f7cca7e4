"""`run` on recorded outputs: what is not used is said, and what else is in --out is left alone."""

import json
from pathlib import Path

import pytest

from tests.evals.odd_server import Server, stop
from tests.evals.pipeline import evals, results_of


@pytest.fixture
def settings(tmp_path: Path) -> list[object]:
    """Three sums, in two tasks: one.yaml and two.yaml."""
    rows = [{"question": f"{i} + {i}?", "gold": str(2 * i)} for i in range(3)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(
            f"title: {name}\ngroup: Own\nitems: 3\ngraders: [math-robust]\n"
            f"columns: {{{name}: math-robust}}\nsources: [{{file: data.jsonl}}]\n"
        )
    return ["--data-dir", tmp_path, "--out", tmp_path / "out", "--tasks"]


def replay(folder: Path, rows: list[dict]) -> list[object]:
    (folder / "replay.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--backend", "replay", "--replay", folder / "replay.jsonl"]


def outputs(*ids: object) -> list[dict]:
    return [{"item_id": item_id, "output": "\\boxed{2}"} for item_id in ids]


def test_outputs_that_are_not_used(
    settings: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", *settings, tmp_path / "one.yaml"]
    rows = outputs(0, 1, 2, "nosuch", 1)
    assert evals(*command, *replay(tmp_path, rows)) == 0
    said = "2 of 5 outputs were not used (first id "
    assert f"{said}'1')" in capsys.readouterr().err
    assert evals(*command, *replay(tmp_path, rows)) == 0
    assert f"{said}'1')" in capsys.readouterr().err, "and when all is there, the same"
    assert evals(*command[:-2], "--tasks", tmp_path / "two.yaml", *replay(tmp_path, rows[:3])) == 0
    assert "not used" not in capsys.readouterr().err


def test_samples_that_were_asked_again(
    settings: list[object], url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of our own samples those count that would be scored."""
    command = [*settings, tmp_path / "one.yaml"]
    server = ["--backend", "http", "--url", url, "--model", "m", "--batch-size", 1]
    Server.replies = {"": stop(content="\\boxed{2}"), "1 + 1?": (400, b"too long")}
    assert evals("run", *command, *server) == 0
    Server.replies = {"": stop(content="\\boxed{2}")}
    assert evals("run", *command, *server, "--retry-errors") == 0
    before = results_of(tmp_path / "out")["one/greedy"]
    assert before["metrics"]["math-robust"]["value"] == pytest.approx(1 / 3)
    lines = (tmp_path / "out/one/greedy/samples.rank0.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert len(rows) == 4 and sum(row["error"] is not None for row in rows) == 1
    again = ["--data-dir", tmp_path, "--out", tmp_path / "again", "--tasks", tmp_path / "one.yaml"]
    capsys.readouterr()
    assert evals("run", *again, *replay(tmp_path, rows)) == 0
    assert "not used" not in capsys.readouterr().err
    found = results_of(tmp_path / "again")["one/greedy"]
    assert found["metrics"] == before["metrics"] and found["rates"]["error"] == 0


def test_what_else_is_in_the_folder_does_not_stop_a_run(
    settings: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = replay(tmp_path, outputs(0, 1))
    assert evals("run", *settings, tmp_path / "one.yaml", *rows) == 3  # an answer is missing
    rows = replay(tmp_path, outputs(0, 1, 2))
    other = ["--temperature", "0,1", "--n", 1]
    capsys.readouterr()
    assert evals("run", *settings, tmp_path / "two.yaml", *rows, *other) == 0
    shown = capsys.readouterr().out
    assert "| replay | 33.3 ±" in shown and "two (greedy)" in shown and "two (T=1" in shown
    assert shown.count("| replay |") == 1, "one row for all folders of a model"
    assert list(results_of(tmp_path / "out")) == ["two/T1", "two/greedy"]
    assert (tmp_path / "out" / "report.md").is_file()
