"""A task of one's own that cannot be what was meant is refused before anything is generated."""

import codecs
import json
from pathlib import Path

import pytest
import yaml

from tests.evals.pipeline import evals

RECORDS = [{"question": f"{i} + {i}?", "gold": str(2 * i)} for i in range(3)]


def run(folder: Path, *records: object, **keys: object) -> int:
    """`run` of a task of one's own, its answers recorded beforehand."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    if not (folder / "data.jsonl").exists():
        (folder / "data.jsonl").write_text("\n".join(lines or map(json.dumps, RECORDS)) + "\n")
    rows = [{"item_id": i, "output": f"\\boxed{{{2 * i}}}"} for i in range(3)]
    (folder / "replay.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "title": "Own",
        "group": "Own",
        "items": 3,
        "graders": ["math-robust"],
        "columns": {"Own": "math-robust"},
        "sources": [{"file": "data.jsonl"}],
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(task | keys))
    settings = ["--tasks", folder / "own.yaml", "--data-dir", folder, "--out", folder / "out"]
    settings += ["--backend", "replay", "--replay", folder / "replay.jsonl"]
    return evals("run", *settings, "--workers", 1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"prompt": {"user": "{qestion}"}},
            "{qestion}, and the items have question, gold; did you mean",
        ),
        ({"prompt": {"user": "{question} {nosuch}"}}, "prompt.user has {nosuch}"),
        ({"prompt": {"user": "Answer in \\boxed{}."}}, "names no field of the items"),
        ({"columns": {"Own": "math-robst"}}, "no grader of the task gives it; did you mean math-r"),
        ({"columns": {"Own": "extracted"}}, "columns: Own: extracted: no grader of the task gives"),
        ({"decoding": {"max_tokens": -1}}, "decoding: max_tokens: -1: it must be 1 or more"),
        ({"decoding": {"top_p": 7}}, "decoding: top_p: 7.0: it must be above 0 and at most 1"),
        ({"graders": ["math-robust"] * 2}, "graders: math-robust is there twice"),
        ({"grading": {"precision": "abc"}}, "precision: abc: it must be a whole number, 0 or"),
        ({"grading": {"precision": -5}}, "precision: -5: it must be a whole number, 0 or"),
        ({"grading": {"match_types": "latex"}}, "match_types: latex: it must be a list of latex,"),
        (
            {"graders": ["mcq-robust"], "columns": {"Own": "mcq-robust"}},
            "own: graders: mcq-robust reads options or lang, but the keys are question, gold",
        ),
        (
            {"graders": ["judge"], "columns": {"Own": "win_rate"}},
            "own: graders: judge reads instruction",
        ),
        ({"extends": "own"}, "extends: own: which is itself"),
        ({"extends": "gms8k"}, "extends: gms8k: no such task; did you mean gsm8k"),
    ],
)
def test_a_task_that_cannot_be_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: dict, message: str
) -> None:
    assert run(tmp_path, **keys) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("samples*"))


def test_braces_that_are_no_placeholders(tmp_path: Path) -> None:
    braces = 'In \\boxed{answer}, not \\frac{a}{b}, x_{n}, \\{k\\} or {"answer": 1}, { no }: '
    columns = {"Own": "math-robust", "One of 2": "math-robust/pass@2"}
    prompt = {"user": braces + "{question}"}
    grading = {"precision": 3, "match_types": ["latex"]}
    assert run(tmp_path, prompt=prompt, columns=columns, grading=grading) == 0
    [first, *_] = (tmp_path / "out/own/greedy/samples.rank0.jsonl").read_text().splitlines()
    assert json.loads(first)["prompt"][0]["content"].startswith(braces)


def test_a_line_of_data_that_is_no_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, RECORDS[0], "[1]", RECORDS[1]) == 3
    assert "data.jsonl:2: a JSON object is needed, not [1]" in capsys.readouterr().err


def test_data_with_a_byte_order_mark(tmp_path: Path) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "data.jsonl").write_bytes(codecs.BOM_UTF8 + lines.encode())
    assert run(tmp_path) == 0
