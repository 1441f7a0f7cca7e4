"""Runs that are unfinished, damaged, old, hostile or no runs at all."""

import json
import re
import shutil

import pytest

from adaptsft.report import main
from adaptsft.train import train
from tests.analysis.report.pages import lines_of, report
from tests.runs import small_config

# tags, templates, TeX, a character that turns text around, a null byte, half of a surrogate pair
HOSTILE = (
    "</script></style>--><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7*7 }}${7*7}"
    "{% raw %}$\\frac$\u202e\x00\ud800&amp;'\""
)


def test_hostile_content_is_shown_and_does_nothing(runs, tmp_path):
    run = tmp_path / f"run {HOSTILE[:8].replace('/', '')}<b onclick=x>$"
    shutil.copytree(runs[0], run, ignore=shutil.ignore_patterns("final", "checkpoints"))
    config = json.dumps(HOSTILE)
    (run / "config.yaml").write_text(
        f"objective: {{name: {json.dumps('<i>' + HOSTILE[:40])}}}\n"
        f'model: {{path: "<svg onload=alert(3)>"}}\n? {config[:60]}"\n: 1\n'
    )
    for name in ("metrics.jsonl", "eval.jsonl"):
        text = (
            (run / name)
            .read_text()
            .replace('"sums"', json.dumps(HOSTILE))
            .replace('"more"', json.dumps("x" * 5000))
        )
        (run / name).write_text(text)
    sample = {
        "prompt": HOSTILE,
        "output": HOSTILE + "again " * 1000,
        "gold": HOSTILE,
        "scores": {HOSTILE: True, "b": "<u>", "c": {}},
    }
    row = {"step": 8, "tasks": {HOSTILE: {HOSTILE: 0.5, "samples": [sample, 3, {"output": 4}]}}}
    with (run / "eval.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    (run / "nonfinite.jsonl").write_text(json.dumps({"step": 2, "examples": [HOSTILE]}) + "\n")
    (run / "environment.json").write_text(
        json.dumps({"command": HOSTILE, "versions": {HOSTILE: HOSTILE}, "machine": [HOSTILE]})
    )
    page = report(tmp_path / "out", run, runs[1])

    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "u", "iframe", "object", "base"})
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "</script></style>--><img src=x onerror=alert(1)>" in page.text, "it can be read"
    assert "{{ 7*7 }}" in page.text, "and is no template"
    assert (
        not set("\x00\u202e") & set(page.source)
        and "⟨U+202E⟩" in page.text
        and "⟨U+0000⟩" in page.text
    )
    assert "[cut: 4," in page.text, "long answers and names are cut"
    assert (
        json.dumps(HOSTILE)[1:10] not in page.source.split('id="data">')[1].split("</script>")[0]
    ), "< is escaped within the data"


def test_unfinished_and_damaged_runs_are_reported(runs, tmp_path):
    run = tmp_path / "killed"
    shutil.copytree(
        runs[0], run, ignore=shutil.ignore_patterns("final", "eval.jsonl", "environment.json")
    )
    lines = (runs[0] / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(
        "\n".join([*lines[:3], '{"step": "x"}', "[]", lines[3][:40]])
    )
    page = report(tmp_path / "out", run)
    assert re.search(
        r"unfinished .* at step 3 of 8; last written \d+ (s|min) before this report; "
        r"\d+ (s|min) to go if it still runs",
        page.text,
    )
    assert "metrics.jsonl: 3 damaged lines left out" in page.text
    assert "environment.json is missing" in page.text


def test_a_finished_run_is_finished_where_its_last_step_ends_in_the_next_epoch(
    tmp_path, tiny_model
):
    """20 examples in steps of 7 are two steps and .86 of one: three."""
    config = small_config(
        tmp_path,
        tiny_model("llama"),
        train__max_steps=0,
        train__global_batch_size=7,
        checkpoint__every=0,
    )
    assert train(config)["step"] == 3
    page = report(tmp_path / "out", config.run_dir)
    assert "unfinished" not in page.text and "run finished" in page.text


def test_what_an_older_run_lacks_is_no_accident_and_no_difference(runs, tmp_path):
    """Rows without `weight` and `kept`; and beside it a run without config.yaml."""
    older, bare = tmp_path / "older", tmp_path / "bare"
    for folder in (older, bare):
        shutil.copytree(runs[0], folder, ignore=shutil.ignore_patterns("final", "checkpoints"))
    rows = [
        {key: value for key, value in row.items() if key not in ("weight", "kept")}
        for row in lines_of(older / "metrics.jsonl")
    ]
    (older / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (bare / "config.yaml").unlink()
    page = report(tmp_path / "out", older, bare)
    assert "the gate has all but closed" not in page.text and "the threshold keeps" not in page.text
    assert "Nowhere but in run_dir." in page.text and "config.yaml is missing" in page.text


@pytest.mark.parametrize("keep", ["config.yaml", "metrics.jsonl"])
def test_whatever_is_missing_is_named(runs, tmp_path, keep):
    run = tmp_path / "part"
    run.mkdir()
    shutil.copy(runs[0] / keep, run)
    page = report(tmp_path / "out", run)
    other = {"config.yaml": "metrics.jsonl", "metrics.jsonl": "config.yaml"}[keep]
    assert f"{other} is missing" in page.text


def test_wrong_types_everywhere_are_no_traceback(runs, tmp_path):
    run = tmp_path / "odd"
    run.mkdir()
    (run / "config.yaml").write_text("- a\n- &b {c: 1}\n- *b\n")
    rows = lines_of(runs[0] / "metrics.jsonl")
    for number, row in enumerate(rows):
        row |= [
            {"nll": "x", "sources": []},
            {"tokens": None, "p_histogram": "abc"},
            {"sources": {"a": 3}, "lr": [1]},
            {"step": 10**400},
        ][number % 4]
    rows += [
        {"step": 50, "nll": float("nan"), "tokens": 0},
        {"step": 51, "tokens": 10**30, "seconds": -1},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "eval.jsonl").write_text(
        '{"step": 0, "nll": null}\n{"step": 4, "tasks": {"a": 3, "b": {"c": "d"}}}\n'
        '{"step": 5, "tasks": []}\n\xff'
    )
    (run / "environment.json").write_text("[" * 100_000)
    (run / "diagnosis").mkdir()
    (run / "diagnosis" / "base_stats.json").write_text(
        '{"sources": {"a": {"mean_p": 0.5}, "b": 1}}'
    )
    (run / "evals" / "gsm8k").mkdir(parents=True)
    (run / "evals" / "gsm8k" / "run.json").write_text("{}")
    (run / "evals" / "gsm8k" / "result.json").write_text('{"schema_version": 1}')
    page = report(tmp_path / "out", run)
    assert (
        "config.yaml cannot be read" in page.text and "environment.json cannot be read" in page.text
    )
    assert "its results are damaged" in page.text


def test_what_is_no_run_is_refused(runs, tmp_path, capsys):
    assert main([str(runs[0].parent)]) == 2
    message = capsys.readouterr().err
    assert (
        "holds neither config.yaml nor metrics.jsonl; did you mean" in message
        and str(runs[1]) in message
    )
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert main([str(runs[0]), str(runs[0])]) == 2
    assert "named twice" in capsys.readouterr().err
    assert main([str(runs[0]), "--evals", str(tmp_path / "nowhere")]) == 2
    assert not (runs[0] / "report").exists(), "nothing is written"
