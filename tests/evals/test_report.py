"""Tables of recorded answers, and comparisons between runs."""

import csv
import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from adaptsft.evals import samples
from adaptsft.evals.data import load_items
from adaptsft.evals.tasks import load_task
from tests.evals.pipeline import SCHEMA, evals


@pytest.fixture(scope="module")
def replayed(tmp_path_factory, shared_data) -> Path:
    """Three runs of recorded answers to OpenBookQA: mostly right, nearly as good, mostly wrong."""
    out = tmp_path_factory.mktemp("replayed")
    items = load_items(load_task("openbookqa"), shared_data).items[:60]
    for name, wrong in (("good", {1, 2}), ("near", {1, 3, 4}), ("bad", set(range(40)))):
        file = out / f"{name}.jsonl"
        with file.open("w") as lines:
            for i, (item_id, fields) in enumerate(items):
                letter = (
                    next(letter for letter in "AB" if letter != fields["gold"])
                    if i in wrong
                    else fields["gold"]
                )
                lines.write(
                    json.dumps({"item_id": item_id, "output": f"So it is \\boxed{{{letter}}}."})
                    + "\n"
                )
        settings = ["--tasks", "openbookqa", "--data-dir", shared_data, "--limit", 60]
        assert (
            evals("run", "--backend", "replay", "--replay", file, "--out", out / name, *settings)
            == 0
        )
    return out


def test_replay_is_graded(replayed):
    for name, right in (("good", 58), ("near", 57), ("bad", 20)):
        result = json.loads((replayed / name / "openbookqa" / "greedy" / "result.json").read_text())
        jsonschema.validate(result, SCHEMA)
        for grader in ("medical-paper", "medical-m1", "mcq-robust"):
            assert result["metrics"][grader]["value"] == pytest.approx(right / 60)
        assert result["disagreements"] == 0 and result["rates"]["unparsed"] == {
            "medical-paper": 0,
            "medical-m1": 0,
            "mcq-robust": 0,
        }


def test_report_marks_the_best_and_what_is_within_noise(replayed, tmp_path):
    runs = [replayed / name for name in ("good", "near", "bad")]
    assert evals("report", "--compare", *runs, "--to", tmp_path) == 0
    text = (tmp_path / "report.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "| **96.7 ± 2.3** [" in rows["good"]
    assert "| 95.0 ± 2.8 ~ [" in rows["near"]
    assert "| 33.3 ± 6.1 [" in rows["bad"]
    assert "OpenBookQA: the first 60 of 500 items" in text and "OpenBookQA (greedy) 60" in text
    with (tmp_path / "report.csv").open() as file:
        cells = {(row["objective"], row["column"]): row for row in csv.DictReader(file)}
    assert float(cells["near", "OpenBookQA (greedy)"]["value"]) == pytest.approx(57 / 60)
    assert cells["near", "OpenBookQA (greedy)"]["within_noise"] == "True"
    assert cells["bad", "OpenBookQA (greedy)"]["within_noise"] == "False"
    tex = (tmp_path / "report.tex").read_text()
    assert r"\textbf{96.7 $\pm$ 2.3}" in tex
    assert tex.count("{") == tex.count("}")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_pass_at_k_is_compared_item_by_item(shared_data, tmp_path):
    """Recorded samples, eight of each item in one run and four in another: as many right ones, but
    in one they are of few items."""
    items = load_items(load_task("openbookqa"), shared_data).items[:12]

    def right(name: str, item: int, sample: int) -> bool:
        return item < 6 if name == "few" else sample % 2 == item % 2

    for name, n in (("few", 4), ("many", 8)):
        file = tmp_path / f"{name}.jsonl"
        with file.open("w") as lines:
            for i, (item_id, fields) in enumerate(items):
                wrong = next(letter for letter in "AB" if letter != fields["gold"])
                for sample in range(n):
                    letter = fields["gold"] if right(name, i, sample) else wrong
                    text = f"\\boxed{{{letter}}}"
                    lines.write(json.dumps({"item_id": item_id, "output": text}) + "\n")
        settings = ["--tasks", "openbookqa", "--data-dir", shared_data, "--limit", 12, "--n", n]
        settings += ["--temperature", 1, "--backend", "replay", "--replay", file]
        assert evals("run", *settings, "--out", tmp_path / name) == 0
    runs = [tmp_path / name for name in ("few", "many")]
    result = json.loads((runs[1] / "openbookqa" / "T1" / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert result["entropy"] is None, "recorded answers do not tell it"
    for k, expected in ((2, 1 - 6 / 28), (4, 1 - 1 / 70), (8, 1.0)):  # of 8 samples 4 are wrong
        found = result["metrics"][f"medical-m1/pass@{k}"]
        assert found == {"value": pytest.approx(expected), "se": pytest.approx(0.0), "n": 12}
    assert evals("report", "--compare", *runs, "--to", tmp_path) == 0
    text = (tmp_path / "report.md").read_text()
    beside = text[text.index(": pass@k and entropy") :]
    header, _, few, many = beside.splitlines()[2:6]
    passes = [(of, k) for ks in ((2, 4), (8,)) for of in ("", " robust") for k in ks]
    columns = [f"OpenBookQA{of} pass@{k} (T=1)" for of, k in passes]
    assert [column.strip() for column in header.split("|")[2:-1]] == columns
    assert [cell.strip() for cell in few.split("|")[2:-1]] == ["50.0 ± 15.1"] * 4 + [""] * 2
    best = ["**78.6 ± 0.0**", "**98.6 ± 0.0**"] * 2 + ["100.0 ± 0.0"] * 2
    assert [cell.strip() for cell in many.split("|")[2:-1]] == best
    assert "entropy, nats per token" not in text and "arXiv:2107.03374" in text
    with (tmp_path / "report.csv").open() as lines:
        cells = {row["column"]: row for row in csv.DictReader(lines) if row["objective"] == "many"}
    assert float(cells["OpenBookQA pass@4 (T=1)"]["value"]) == pytest.approx(1 - 1 / 70)


def test_runs_in_folders_of_one_name_keep_their_rows(replayed, tmp_path, capsys):
    """Two seeds of one objective, each evaluated into RUN/evals; the second with other items."""
    runs = [tmp_path / seed / "evals" for seed in ("seed0", "seed1")]
    for run, name in zip(runs, ("good", "bad"), strict=True):
        shutil.copytree(replayed / name, run)
        result = samples.read_json(run / "openbookqa" / "greedy" / "result.json")
        result["model"]["objective"] = "nll"
        samples.write_json(run / "openbookqa" / "greedy" / "result.json", result)
    result["metrics"]["medical-m1"]["n"] = 59
    samples.write_json(runs[1] / "openbookqa" / "greedy" / "result.json", result)
    assert evals("report", "--compare", *runs, "--to", tmp_path) == 0
    text = (tmp_path / "report.md").read_text()
    assert "| nll (seed0/evals) | **96.7" in text and "| nll (seed1/evals) | 33.3" in text
    assert "OpenBookQA (greedy) 59 to 60," in text
    shutil.copytree(runs[0] / "openbookqa", runs[0] / "mine")
    assert evals("report", *runs) == 3, "one column cannot hold two tasks' figures"
    assert "has the column 'OpenBookQA (greedy)' too" in capsys.readouterr().err


def test_answers_without_an_option_are_counted_and_shown(shared_data, tmp_path, capsys):
    """Of twelve answers three refuse and two name two options; the imitations guess at those."""
    items = load_items(load_task("openbookqa"), shared_data).items[:12]
    texts = {0: "I cannot help with that.", 1: "I don't know.", 2: "", 3: "A or B", 4: "A, B, C"}
    with (tmp_path / "outputs.jsonl").open("w") as lines:
        for i, (item_id, fields) in enumerate(items):
            output = texts.get(i, f"The answer is {fields['gold']}.")
            lines.write(json.dumps({"item_id": item_id, "output": output}) + "\n")
    settings = ["--tasks", "openbookqa", "--data-dir", shared_data, "--limit", 12]
    settings += ["--backend", "replay", "--replay", tmp_path / "outputs.jsonl"]
    assert evals("run", *settings, "--out", tmp_path / "out") == 0
    folder = tmp_path / "out" / "openbookqa" / "greedy"
    result = json.loads((folder / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert result["rates"]["unparsed"]["mcq-robust"] == pytest.approx(5 / 12)
    assert result["metrics"]["mcq-robust"]["value"] == pytest.approx(7 / 12)
    scored = samples.read_lines(folder / "scored.jsonl")[0]
    assert [row["extracted"]["mcq-robust"] for row in scored[:5]] == [None] * 5
    differ = samples.read_lines(folder / "disagreements.jsonl")[0]
    assert len(differ) == result["disagreements"] > 0, "a guess of an imitation that was right"
    assert not any(row["scores"]["mcq-robust"] for row in differ)
    assert evals("score", tmp_path / "out") == 0
    assert "mcq-robust 58.33 (41.67 % unparsed)" in capsys.readouterr().out
    assert evals("report", tmp_path / "out") == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| 58.3 ± 14.9 [1, 2, 3] |" in text
    found = [line for line in text.splitlines() if line.startswith("[3] ")]
    assert len(found) == 1 and "OpenBookQA robust (greedy) 41.7 %" in found[0]
    with (tmp_path / "out" / "report.csv").open() as file:
        cells = {row["column"]: row for row in csv.DictReader(file)}
    assert float(cells["OpenBookQA robust (greedy)"]["unparsed"]) == pytest.approx(5 / 12)
