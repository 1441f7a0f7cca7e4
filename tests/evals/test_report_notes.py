"""What the tables of `report` say beside the scores."""

import csv
from pathlib import Path

from adaptsft.evals import samples
from tests.evals.pipeline import BOTH, NEITHER, evals


def cells(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "report.csv").open() as file:
        return {f"{row['objective']} {row['column']}": row for row in csv.DictReader(file)}


def test_how_answers_ended(evaluated, tmp_path, capsys):
    """Of four answers two were cut off, one ended by an error."""
    run = evaluated("a", [BOTH, NEITHER, BOTH, None])
    recorded = samples.Samples(folder := run / "letters" / "greedy")
    for one in list(recorded.records.values())[:2]:
        recorded.add([one | {"finish_reason": "length"}])
    assert evals("score", run) == 0
    out = capsys.readouterr().out
    assert "[cut off at max_tokens: 50.0 %]" in out and "[answers with errors: 25.0 %" in out
    result = samples.read_json(folder / "result.json")
    result["rates"]["ungraded"]["medical-m1"] = 0.25
    samples.write_json(folder / "result.json", result)
    assert evals("report", run) == 0
    text = (run / "report.md").read_text()
    note = "a: of the answers: Letters (greedy): cut off 50.0 %; ended by an error 25.0 %; "
    (line,) = [line for line in text.splitlines() if note + "without a score 25.0 %" in line]
    number = line[1 : line.index("]")]
    (row,) = [line for line in text.splitlines() if line.startswith("| a |")]
    assert number in row[row.index("[") :]
    found = cells(run)["a Letters (greedy)"]
    shares = [float(found[name]) for name in ("truncated", "error", "ungraded")]
    assert shares == [0.5, 0.25, 0.25]


def test_what_cannot_be_compared_is_on_the_page(evaluated, tmp_path, capsys):
    """One task on other data: its column has no mark, the other task's has."""
    a, b = evaluated("a", [BOTH, BOTH]), evaluated("b", [BOTH, NEITHER])
    for run, data in ((a, 1), (b, 2)):
        evaluated(run.name, [BOTH], task="other", data=data, more="columns: {Other: medical-m1}\n")
    to = tmp_path / "to"
    assert evals("report", "--compare", a, b, "--disagreements", 1, "--to", to) == 0
    found = cells(to)
    assert found["a Letters (greedy)"]["best"] == "True"
    assert found["a Other (greedy)"]["best"] == found["b Other (greedy)"]["best"] == "False"
    assert "Other (greedy): not compared: " in found["b Other (greedy)"]["notes"]
    page = (to / "disagreements.md").read_text()
    assert "Not compared: `other/greedy: " in page and "evaluated on other data" in page
    # nothing at all can be compared
    runs = [run / "other" for run in (a, b)]
    assert evals("report", *runs, "--disagreements", 1, "--to", to) == 0
    assert "Not compared: `other/greedy: " in (to / "disagreements.md").read_text()
    assert "](disagreements.md)" in (to / "report.md").read_text()


def test_what_report_refuses(evaluated, tmp_path, capsys):
    runs = [evaluated("a", [BOTH]), evaluated("b", [NEITHER])]
    assert evals("report", runs[0], "--compare", *runs) == 2
    assert "name them all behind it" in capsys.readouterr().err
    (file := tmp_path / "file").write_text("")
    assert evals("report", *runs, "--to", file) == 2
    assert f"{file}: cannot be written: " in capsys.readouterr().err
    assert evals("compare", *runs, "--to", file / "below") == 2
    assert f"--to {file / 'below'}: cannot be written: " in capsys.readouterr().err


def test_the_best_is_that_on_shared_items(evaluated, tmp_path):
    """`few` has the higher mean, of easy questions alone; on those `all` is better."""
    few = evaluated("few", [BOTH, BOTH, NEITHER], data=9)
    rest = evaluated("all", [BOTH, BOTH, BOTH, *[NEITHER] * 6], data=9)
    assert evals("report", "--compare", few, rest, "--to", tmp_path) == 0
    found = cells(tmp_path)
    values = [float(found[f"{name} Letters (greedy)"]["value"]) for name in ("few", "all")]
    assert values[0] > values[1]
    assert found["all Letters (greedy)"]["best"] == "True"
    assert found["few Letters (greedy)"]["within_noise"] == "True"
    note = "Letters (greedy): the best is that on the 3 items that all rows have"
    assert note in found["all Letters (greedy)"]["notes"]
    assert note not in found["few Letters (greedy)"]["notes"]


def test_pipes_do_not_break_a_table(evaluated, tmp_path):
    run = evaluated("a|b", [BOTH], more="columns: {'Letters | m1': medical-m1}\n")
    assert evals("report", run, "--to", tmp_path) == 0
    lines = (tmp_path / "report.md").read_text().splitlines()
    rows = [line.replace(r"\|", "") for line in lines if line.startswith("| ")]
    assert len(rows) == 3 and {row.count("|") for row in rows} == {3}
    assert r"Letters \| m1 (greedy)" in "".join(lines) and r"| a\|b |" in "".join(lines)
