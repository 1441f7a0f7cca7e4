"""Scores that come from elsewhere than our graders: a judge, and lm-eval."""

import json
import shutil

import jsonschema
import numpy as np
import pytest

from adaptsft.evals import samples
from tests.evals.hub import CATEGORIES, hub_folder, mmlu_prox_sw, openbookqa_records
from tests.evals.pipeline import SCHEMA, evals


def test_alpaca_eval_is_scored_once_it_is_judged(shared_data, tmp_path, capsys):
    file, folder = tmp_path / "outputs.jsonl", tmp_path / "out" / "alpaca_eval" / "greedy"
    file.write_text(
        "".join(json.dumps({"item_id": str(i), "output": f"answer {i}"}) + "\n" for i in range(4))
    )
    settings = ["--backend", "replay", "--replay", file, "--temperature", 0]
    settings += ["--data-dir", shared_data, "--limit", 4]
    assert evals("run", "--tasks", "alpaca_eval", "--out", tmp_path / "out", *settings) == 3
    assert f"python -m adaptsft.evals judge {folder} REFERENCE" in capsys.readouterr().err
    asked = [
        item["fields"]["instruction"] for item in samples.read_lines(folder / "items.jsonl")[0]
    ]

    def judged(*preferences: float | None) -> list[dict]:
        return [
            {
                "annotator": "a judge",
                "generator_1": "reference",
                "generator_2": "mine",
                "instruction": instruction,
                "output_1": "a",
                "output_2": f"answer {i}",
                "preference": p,
            }
            for i, (instruction, p) in enumerate(zip(asked, preferences, strict=False))
        ]

    samples.write_json(folder / "annotations.json", judged(2, 1.25, None))
    assert evals("score", folder) == 3
    assert "3 judgements of 4 answers: judge again: `python -m" in capsys.readouterr().err
    # the model on the reference's side, the answers of a run before, other instructions
    swapped = {"output_1": "answer 0", "output_2": "a"}
    for other in (swapped, {"output_2": "before"}, {"instruction": "?"}):
        records = judged(2, 1.25, None, 1)
        samples.write_json(folder / "annotations.json", [records[0] | other, *records[1:]])
        assert evals("score", folder) == 3
        assert "these are judgements of other answers; judge again" in capsys.readouterr().err
    samples.write_json(folder / "annotations.json", judged(None, None, None, None))
    assert evals("score", folder) == 3 and not (folder / "result.json").exists()
    assert "the judge chose in none of 4 pairs" in capsys.readouterr().err
    samples.write_json(folder / "annotations.json", judged(2, 1.25, None, 1.0))
    assert evals("score", folder) == 0
    result = json.loads((folder / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    [grader] = result["grader"]
    assert (grader["judge"], grader["reference"]) == ("a judge", "reference")
    assert result["metrics"]["win_rate"] == {
        "value": pytest.approx(1.25 / 3),
        "se": pytest.approx(np.std([1, 0.25, 0], ddof=1) / 3**0.5),
        "n": 3,
    }
    assert evals("report", tmp_path / "out") == 0
    assert "AlpacaEval 2 WR (greedy)" in (tmp_path / "out" / "report.md").read_text()
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    folder = tmp_path / "other" / "alpaca_eval" / "greedy"
    samples.write_json(folder / "annotations.json", judged(1.25, None, None, 2))
    assert evals("score", folder) == 0
    capsys.readouterr()
    assert evals("compare", tmp_path / "out", tmp_path / "other") == 0
    shown = capsys.readouterr().out
    assert "A better: 1 item\nB better: 1 item\n" in shown, (
        "items that were not judged count in neither"
    )
    assert "alpaca_eval/greedy, runs by win_rate" in shown and "│ answer 0" in shown
    assert evals("compare", tmp_path / "out") == 3
    assert "none that says right or wrong: name a second run" in capsys.readouterr().err


def test_a_task_of_lm_eval_goes_through_the_same_stages(tiny_model, tmp_path, capsys):
    pytest.importorskip(
        "lm_eval", reason="lm-eval is not installed: pip install 'adaptsft[harness]'"
    )
    hub_folder(
        tmp_path / "data" / "allenai" / "openbookqa",
        "main",
        dict.fromkeys(("train", "validation", "test"), openbookqa_records()),
    )
    (tmp_path / "five.yaml").write_text("extends: openbookqa_likelihood\nitems: 5\n")
    out = tmp_path / "out"
    settings = ["--tasks", tmp_path / "five.yaml", "--data-dir", tmp_path / "data", "--out", out]
    assert evals("run", "--model", tiny_model("llama"), *settings) == 0
    assert "OpenBookQA likelihood (likelihood)" in capsys.readouterr().out
    result = json.loads((out / "five" / "harness" / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert result["metrics"]["acc"]["n"] == 5
    before = (out / "five" / "harness" / "samples.rank0.jsonl").read_bytes()
    assert evals("score", out) == 0
    assert json.loads((out / "five" / "harness" / "result.json").read_text()) == result
    assert (out / "five" / "harness" / "samples.rank0.jsonl").read_bytes() == before
    assert evals("run", "--model", tiny_model("qwen2"), *settings[:-1], tmp_path / "other") == 0
    scored = tmp_path / "other" / "five" / "harness" / "scored.jsonl"
    rows, _ = samples.read_lines(scored)  # tiny models answer alike
    rows[2]["scores"]["acc"] = 1.0 - rows[2]["scores"]["acc"]
    samples.write_lines(scored, rows)
    capsys.readouterr()
    assert evals("compare", out, tmp_path / "other", "--disagreements", 5) == 0
    shown = capsys.readouterr().out
    assert "five/harness, runs by acc" in shown and "1 of 1: item openbookqa/2: A " in shown
    assert f"Question:\n  │ {rows[2]['prompt']}\nGold: {rows[2]['gold']}\n" in shown
    assert evals("generate", "--model", tiny_model("llama"), *settings, "--temperature", "0,1") == 2
    assert "five: lm-eval's task decides how it decodes" in capsys.readouterr().err
    assert evals("generate", "--model", tiny_model("qwen2"), *settings) == 2, (
        "another model's answers are not mixed with these"
    )


def test_a_task_of_lm_eval_is_scored_from_another_folder(tmp_path, capsys, monkeypatch):
    pytest.importorskip(
        "lm_eval", reason="lm-eval is not installed: pip install 'adaptsft[harness]'"
    )
    mmlu_prox_sw(tmp_path / "data")
    items = [f"mmlu_prox_sw_{category.replace(' ', '_')}/0" for category in CATEGORIES]
    rows = [{"item_id": item, "output": "Jibu ni (B)."} for item in [*items, "nosuch/0"]]
    samples.write_lines(tmp_path / "answers.jsonl", rows)
    (tmp_path / "few.yaml").write_text("extends: mmlu_prox_sw\nitems: 14\n")
    monkeypatch.chdir(tmp_path)
    settings = ["--tasks", "few.yaml", "--data-dir", "data", "--out", "out"]
    assert evals("generate", *settings, "--backend", "replay", "--replay", "answers.jsonl") == 0
    assert "1 of 15 outputs were not used (first id 'nosuch/0')" in capsys.readouterr().err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evals("score", "../out") == 0
    assert "mcq-robust 100.00" in capsys.readouterr().out


def test_answers_to_lm_evals_questions_are_read_by_mcq_robust_too(tmp_path, capsys):
    """MMLU-ProX, beside lm-eval's pattern: the first sentence of the prompt's."""
    pytest.importorskip(
        "lm_eval", reason="lm-eval is not installed: pip install 'adaptsft[harness]'"
    )
    mmlu_prox_sw(tmp_path / "data")
    answers = ["Jibu ni (B).", "Jibu ni (A). La, jibu ni (B).", "Jibu sahihi ni 4.", "Sijui."]
    with (tmp_path / "answers.jsonl").open("w") as lines:
        for i, category in enumerate(CATEGORIES):
            item = f"mmlu_prox_sw_{category.replace(' ', '_')}/0"
            lines.write(json.dumps({"item_id": item, "output": answers[i % 4]}) + "\n")
    (tmp_path / "few.yaml").write_text("extends: mmlu_prox_sw\nitems: 14\n")
    settings = ["--tasks", tmp_path / "few.yaml", "--data-dir", tmp_path / "data"]
    settings += ["--backend", "replay", "--replay", tmp_path / "answers.jsonl"]
    assert evals("run", *settings, "--out", tmp_path / "out") == 0
    folder = tmp_path / "out" / "few" / "harness"
    result = json.loads((folder / "result.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert [one["name"] for one in result["grader"]] == ["lm-eval", "mcq-robust"]
    assert result["metrics"]["exact_match"]["value"] == pytest.approx(4 / 14)
    assert result["metrics"]["mcq-robust"]["value"] == pytest.approx(11 / 14)
    assert result["rates"]["unparsed"] == {
        "lm-eval": pytest.approx(6 / 14),
        "mcq-robust": pytest.approx(3 / 14),
    }
    differ = samples.read_lines(folder / "disagreements.jsonl")[0]
    assert len(differ) == result["disagreements"] == 7
    assert {row["extracted"]["mcq-robust"] for row in differ} == {"B"}
    assert "sw robust (greedy) 21.4 %" in capsys.readouterr().out
    capsys.readouterr()
    assert evals("compare", tmp_path / "out", "--disagreements", 0) == 0
    assert "exact_match wrong, mcq-robust right: 7" in capsys.readouterr().out
    before = result["metrics"]
    assert evals("score", tmp_path / "out") == 0
    assert json.loads((folder / "result.json").read_text())["metrics"] == before
