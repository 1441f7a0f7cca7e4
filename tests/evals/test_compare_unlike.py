"""`evals compare` where runs differ in more than their answers, or cannot be compared."""

from tests.evals.pipeline import BOTH, M1_ALONE, NEITHER, evals


def test_other_prompts_and_grading_are_said(evaluated, compared, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    a = evaluated("a", ["0.5", "\\boxed{B}"], graders="medical-m1, math-robust")
    more = 'version: 2\ngrading: {units: strict}\nprompt: {system: "Be\\n# brief."}\n'
    b = evaluated("b", [BOTH, NEITHER], graders="medical-m1, math-robust", more=more)
    text = compared(a, b, "--disagreements", 0, "--to", tmp_path / "to")
    for note in (
        "task's version: 1 in A, 2 in B",
        'task\'s grading.units: null in A, "strict" in B',
        'in A, "Be\\n# brief." in B',
    ):
        assert note in text, text
    assert "\n# brief" not in (tmp_path / "to" / "disagreements.md").read_text()
    assert evals("report", "--compare", a, b, "--to", tmp_path / "to") == 0
    report = (tmp_path / "to" / "report.md").read_text()
    assert "Letters (greedy): task's version: 1 in a, 2 in b" in report
    result = (b / "letters" / "greedy" / "result.json").read_text()
    assert '"grading": {\n   "units": "strict"' in result


def test_messages_name_task_file_and_remedy(evaluated, compared, tmp_path, capsys):
    a, b = evaluated("a", [BOTH, M1_ALONE]), evaluated("b", [NEITHER, BOTH])
    for run in (a, b):
        evaluated(run.name, [[BOTH, NEITHER]] * 2)
    text = compared(a, b, "--metric", "medical-m1/pass@2", "--to", tmp_path / "to")
    assert "Not compared: letters/greedy: --metric medical-m1/pass@2: k" in " ".join(text.split())
    assert text.endswith(f"\n{tmp_path / 'to' / 'disagreements.md'}\n")
    text = compared(a, b, "--tasks", "letters/greedy", "--kind", "graders")
    assert "runs by" not in text and "graders differ in A: 1 item\n" in text
    folder = b / "letters" / "greedy"
    (folder / "scored.jsonl").write_text("{]\n")
    assert evals("compare", a, b, "--tasks", "letters/greedy") == 3
    said = capsys.readouterr().err
    assert f"damaged; run `python -m adaptsft.evals score {folder}`" in said
    assert "adaptsft.evals: DataError: letters/greedy: " in said
