"""`evals compare` where runs differ in more than their answers, or cannot be compared."""

from tests.evals.pipeline import BOTH, NEITHER


def test_other_prompts_and_grading_are_said(evaluated, compared, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    a = evaluated("a", ["0.5", "\\boxed{B}"], graders="mcq-robust, math-robust")
    more = 'version: 2\ngrading: {units: strict}\nprompt: {system: "Be\\n# brief."}\n'
    b = evaluated("b", [BOTH, NEITHER], graders="mcq-robust, math-robust", more=more)
    text = compared(a, b, "--disagreements", 0, "--to", tmp_path / "to")
    for note in (
        "task's version: 1 in A, 2 in B",
        'task\'s grading.units: null in A, "strict" in B',
        'in A, "Be\\n# brief." in B',
    ):
        assert note in text, text
    assert "\n# brief" not in (tmp_path / "to" / "disagreements.md").read_text()
    result = (b / "letters" / "greedy" / "result.json").read_text()
    assert '"grading": {\n   "units": "strict"' in result
