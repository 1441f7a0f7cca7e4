"""`grade` on records that are not as they should be, and how it says so."""

import io
import json
import time

import pytest

from adaptsft.evals.graders.mathematics.robust import MATCH_TYPES
from adaptsft.evals.graders.registry import GRADERS
from tests.evals.pipeline import evals


def grade(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    records: list[object],
    *arguments: object,
) -> tuple[int, list[dict], str]:
    """The exit code, verdicts and stderr of `grade` on the records."""
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    capsys.readouterr()
    code = evals("grade", *arguments)
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_many_broken_lines_take_no_longer_than_they_must(capsys, monkeypatch) -> None:
    start = time.process_time()
    code, _, err = grade(capsys, monkeypatch, [{}] * 50_000, "figfont")
    assert code == 3 and "50000 of 50000 lines could not be graded" in err
    assert time.process_time() - start < 10, "quadratic: 20 s and more"


def test_keys_that_the_math_graders_choose_between(capsys, monkeypatch) -> None:
    records: list[object] = [
        {"gold": "5", "prediction": None, "response": "\\boxed{5}"},
        {"gold": "5", "prediction": "5"},
        {"gold": "5", "response": None, "prediction": "5"},
        {"gold": "5"},
    ]
    arguments = ["math-robust", "--workers", 1, "--units", "strict"]
    code, verdicts, _ = grade(capsys, monkeypatch, records, *arguments)
    assert code == 3
    assert [verdict["correct"] for verdict in verdicts] == [True, True, None, None]
    assert verdicts[2]["error"] == "response is None; it must be text"
    assert verdicts[3]["error"].endswith("but the keys are gold"), "units is not the user's"


def test_values_that_the_math_graders_refuse(capsys, monkeypatch) -> None:
    record = {"gold": "5", "response": "5"}
    wrong: list[object] = [
        record | one
        for one in (
            {"precision": "abc"},
            {"precision": -5},
            {"match_types": "latex"},
            {"units": "maybe"},
        )
    ]
    code, verdicts, _ = grade(capsys, monkeypatch, wrong, "math-robust", "--workers", 1)
    assert code == 3
    assert [verdict["error"].partition("; it must be ")[2] for verdict in verdicts] == [
        "a whole number, 0 or above",
        "a whole number, 0 or above",
        "a list of latex, expr, string, NativeLetters",
        "ignore or strict",
    ]
    assert set(GRADERS["math-robust"].optional["match_types"].choices) == set(MATCH_TYPES)


@pytest.mark.parametrize("grader", ["medical-paper", "medical-m1", "mcq-robust"])
def test_options_are_called_by_capital_letters(capsys, monkeypatch, grader: str) -> None:
    """The published graders look for capital letters alone, and would read one that is none."""
    record = {"options": {"a": "yes", "b": "no"}, "gold": "b", "response": "The answer is B."}
    code, [verdict], _ = grade(capsys, monkeypatch, [record], grader)
    assert code == 3 and verdict["correct"] is None
    assert verdict["error"] == "options are called a, b; they must be capital letters"
