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
