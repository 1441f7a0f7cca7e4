"""The page of real tiny runs: its numbers are those of the files, and it stands alone."""

import base64
import fnmatch
import hashlib
import json
import re
import shutil
import tomllib

import pytest

from adaptsft.evals.__main__ import main as evals
from adaptsft.report import main
from tests.analysis.report.pages import lines_of, list_titles, report
from tests.conftest import REPO


def test_the_run_records_the_histogram_of_p(runs):
    for row in lines_of(runs[0] / "metrics.jsonl") + lines_of(runs[0] / "eval.jsonl"):
        for part in (row, *row["sources"].values()):
            assert sum(part["p_histogram"]) == part["tokens"]
            below = sum(part["p_histogram"][:30])  # up to log-odds -1.5, p = .182
            assert (
                below
                <= part["below_0.2"] * part["tokens"] + 1e-6
                <= sum(part["p_histogram"][:31]) + 1e-5
            )


def test_figures_are_those_of_the_files(page, runs):
    for number, run in enumerate(runs):
        rows = lines_of(run / "metrics.jsonl")
        for key in ("loss", "nll", "mean_p", "grad_norm", "lr"):
            line = page.hover[key]["lines"][number]
            assert (line["label"], line["x"]) == (run.name, [row["step"] for row in rows])
            assert line["y"] == pytest.approx([row[key] for row in rows], rel=1e-5)
        line = page.hover["source1_nll"]["lines"][number]
        source = next(
            name
            for name in ("sums", "more")
            if f"Ungated NLL, nats per token: {name}" == list_titles(page)["source1_nll"]
        )
        assert line["y"] == pytest.approx([row["sources"][source]["nll"] for row in rows], rel=1e-5)
        held_out = lines_of(run / "eval.jsonl")
        assert page.hover["held_out_nll"]["lines"][number]["y"] == pytest.approx(
            [row["nll"] for row in held_out], rel=1e-5
        )
        before, after = (row["mean_p"] for row in (held_out[0], held_out[-1]))
        assert f"mean p {before:.2g} → {after:.2g} (before step 1 → after step 8)" in page.text
        tokens = sum(row["tokens"] for row in rows)
        assert f"8 steps, {tokens:,.0f} target tokens in 40 examples" in page.text
        histogram = page.hover[f"p_run{number + 1}_source1"]["lines"]
        assert [sum(line["y"]) for line in histogram] == pytest.approx([1, 1], abs=0.05), (
            "bars beyond the shown ones are nearly empty"
        )


def test_two_runs_are_overlaid(page, runs):
    assert {a["id"] for tag, a in page.tags if tag == "input"} == {"show-0", "show-1"}
    groups = [a["class"] for tag, a in page.tags if tag == "g"]
    assert "run-0 c0" in groups and "run-1 c1" in groups
    differing = [
        page.words.index(key) for key in ("objective.name", "objective.lower", "train.clip_norm")
    ]
    assert (
        differing == sorted(differing) and page.words.index("Where the runs differ") < differing[0]
    )
    assert (
        "data.max_length"
        not in page.words[
            page.words.index("Where the runs differ") : page.words.index("What is not the default")
        ]
    )
    assert "The loss has another scale for every objective" in page.text
    assert "Tokens kept by the threshold, share" in list_titles(page).values()


def test_the_page_stands_alone(page):
    policy = next(
        a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    for part in (page.content["script"][1], page.content["style"][0]):
        assert base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() in policy, (
            "the browser runs only what has this hash"
        )
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "style", "action"), (tag, name)
            assert name != "href" or value.startswith(("#", "data:image/png;base64,")), value
            assert not name.startswith("on")
    assert not re.search(
        r"url\(|@import|fetch\(|innerHTML|eval\(",
        "".join(page.content["style"] + page.content["script"][1:]),
    )
    names = [a["id"] for _, a in page.tags if "id" in a]
    assert len(names) == len(set(names))
    linked = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert linked and set(linked) <= set(names)


def test_every_chart_is_a_png_too(tmp_path, runs):
    assert main([str(runs[0]), "--out", str(tmp_path)]) == 0
    pictures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {
        "loss.png",
        "nll.png",
        "mean_p.png",
        "continuum.png",
        "p_over_time_run1.png",
        "held_out_nll.png",
    } <= pictures
    assert all(
        (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in pictures
    ), "and nothing half written"


def test_evaluations_are_shown_with_their_errors(runs, shared_data, tmp_path):
    """Of run 1 in RUN/evals, of run 2 by --evals: a table that compares them, and answers side by
    side."""
    copies = [tmp_path / run.name for run in runs]
    for run, copy in zip(runs, copies, strict=True):
        shutil.copytree(run, copy)
    places = [copies[0] / "evals", tmp_path / "elsewhere"]
    for copy, place in zip(copies, places, strict=True):
        settings = [
            "--model",
            copy,
            "--tasks",
            "gsm8k",
            "--data-dir",
            shared_data,
            "--limit",
            3,
            "--max-tokens",
            8,
            "--workers",
            1,
        ]
        assert evals(["run", *map(str, settings), "--out", str(place)]) == 0
    same = f"{places[0]}/../evals"  # of run 1, which is there anyhow
    page = report(tmp_path / "out", *copies, "--evals", places[1], same)
    result = json.loads(next(places[0].rglob("result.json")).read_text())
    cell = result["metrics"][next(iter(result["task"]["columns"].values()))]
    assert f"{100 * cell['value']:.1f} ± {100 * cell['se']:.1f} %" in page.text
    assert page.text.count("a paired bootstrap over the items cannot tell it") == 1
    answers = [a for tag, a in page.tags if a.get("class", "").startswith("answer run-")]
    assert [a["class"] for a in answers] == ["answer run-0", "answer run-1"] * 3
    scored = lines_of(next(places[1].rglob("scored.jsonl")))
    assert " ".join(scored[0]["output"].split())[:10] in page.text


def test_pass_at_k_and_entropy_are_shown_and_a_narrow_model_is_warned_of(
    runs, shared_data, tmp_path
):
    """Answers drawn from a run's model; then with the entropy of a narrow one in their place."""
    run, place = tmp_path / "run", tmp_path / "run" / "evals"
    shutil.copytree(runs[0], run)
    settings = ["--model", run, "--tasks", "gsm8k", "--data-dir", shared_data, "--limit", 3]
    settings += ["--temperature", 1, "--n", 4, "--max-tokens", 8, "--workers", 1, "--out", place]
    assert evals(["run", *map(str, settings)]) == 0
    file = place / "gsm8k" / "T1" / "result.json"
    result = json.loads(file.read_text())
    entropy = result["entropy"]
    assert entropy["value"] > 0.2, "a model of random weights"
    page = report(tmp_path / "out", run)
    assert f"{entropy['value']:.3f} ± {entropy['se']:.3f}" in page.text
    assert "GSM8K pass@2 (T=1) GSM8K pass@4 (T=1)" in page.text
    assert "Reinforcement learning that starts from it" not in page.text
    assert "Best task result: GSM8K (T=1, mean of 4)" in page.text, "neither pass@k nor entropy"
    result["entropy"] = entropy | {"value": 0.15}
    file.write_text(json.dumps(result))
    (warning,) = re.findall(
        r"gsm8k: entropy, [^:]*: the model's.*auto_rl.*?more", report(tmp_path / "narrow", run).text
    )
    assert "0.150 nats of entropy per token, below 0.2" in warning and "alpha 1" in warning
    del result["entropy"]
    file.write_text(json.dumps(result))
    assert "entropy, nats per token (T=1)" not in report(tmp_path / "older", run).text


def test_the_wheel_holds_the_page():
    declared = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ].get("adaptsft.analysis.report", [])
    for path in (REPO / "adaptsft" / "analysis" / "report").glob("page.*"):
        assert path.suffix == ".py" or any(
            fnmatch.fnmatch(path.name, pattern) for pattern in declared
        ), path.name
