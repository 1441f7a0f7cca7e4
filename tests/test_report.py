"""The run report on real tiny runs: its numbers are those of the files, it stands alone, and hostile or missing content does no harm."""

import base64
import fnmatch
import hashlib
import json
import re
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from adaptsft.analysis.report.findings import repeats
from adaptsft.evals.__main__ import main as evals
from adaptsft.report import main
from adaptsft.train import train
from tests.conftest import REPO
from tests.runs import small_config, write_data

VOID = {"meta", "input", "img", "br", "hr", "link", "image"}
HOSTILE = "</script></style>--><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7*7 }}${7*7}{% raw %}$\\frac$\u202e\x00\ud800&amp;'\""


class Page(HTMLParser):
    """Everything that a test asks of a page; complains of tags that do not close."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.source = path.read_text()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.content: dict[str, list[str]] = {"script": [], "style": []}
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        (
            self.content[self.open[-1]]
            if self.open and self.open[-1] in self.content
            else self.words
        ).append(data)

    @property
    def hover(self) -> dict:
        return json.loads(self.content["script"][0])


def report(out: Path, *arguments: object) -> Page:
    assert main([*map(str, arguments), "--out", str(out), "--no-png"]) == 0
    return Page(out / "report.html")


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model) -> list[Path]:
    """Two runs of eight steps on two sources, by NLL and by a threshold, with held-out data."""
    folder = tmp_path_factory.mktemp("runs")
    sources = [
        {"name": name, "path": str(write_data(folder / f"{name}.jsonl", 12, seed))}
        for seed, name in enumerate(("sums", "more"))
    ]
    settings = {
        "data__path": "",
        "data__sources": sources,
        "data__validation_examples": 4,
        "eval__every": 4,
        "train__max_steps": 8,
    }
    folders = []
    for name, keys in (
        ("nll", {}),
        (
            "kept",
            {"objective__name": "threshold", "objective__lower": 0.02, "train__clip_norm": 0.5},
        ),
    ):
        config = small_config(
            folder, tiny_model("llama"), name, checkpoint__every=0, **settings, **keys
        )
        train(config)
        folders.append(Path(config.run_dir))
    return folders


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Page:
    return report(tmp_path_factory.mktemp("report"), *runs)


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


def list_titles(page: Page) -> dict[str, str]:
    return {
        a["data-chart"]: a["aria-label"]
        for tag, a in page.tags
        if tag == "svg" and "data-chart" in a
    }


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


def test_hostile_content_is_shown_and_does_nothing(runs, tmp_path):
    run = tmp_path / f"run {HOSTILE[:8].replace('/', '')}<b onclick=x>$"
    shutil.copytree(runs[0], run, ignore=shutil.ignore_patterns("final", "checkpoints"))
    config = json.dumps(HOSTILE)
    (run / "config.yaml").write_text(
        f'objective: {{name: {json.dumps("<i>" + HOSTILE[:40])}}}\nmodel: {{path: "<svg onload=alert(3)>"}}\n? {config[:60]}"\n: 1\n'
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
        r"unfinished .* at step 3 of 8; last written \d+ s before this report; \d+ s to go if it still runs",
        page.text,
    )
    assert "metrics.jsonl: 3 damaged lines left out" in page.text
    assert "environment.json is missing" in page.text


def test_a_finished_run_is_finished_whatever_its_last_epoch_leaves_out(tmp_path, tiny_model):
    """20 examples in steps of 7 are two steps and .86 of one."""
    config = small_config(
        tmp_path,
        tiny_model("llama"),
        train__max_steps=0,
        train__global_batch_size=7,
        checkpoint__every=0,
    )
    train(config)
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
        '{"step": 0, "nll": null}\n{"step": 4, "tasks": {"a": 3, "b": {"c": "d"}}}\n{"step": 5, "tasks": []}\n\xff'
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
    said = capsys.readouterr().err
    assert (
        "holds neither config.yaml nor metrics.jsonl; did you mean" in said and str(runs[1]) in said
    )
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert main([str(runs[0]), str(runs[0])]) == 2
    assert "named twice" in capsys.readouterr().err
    assert main([str(runs[0]), "--evals", str(tmp_path / "nowhere")]) == 2
    assert not (runs[0] / "report").exists(), "nothing is written"


def test_evaluations_are_shown_with_their_errors(runs, shared_data, tmp_path):
    """Of run 1 in RUN/evals, of run 2 by --evals: a table that compares them, and answers side by side."""
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
    page = report(
        tmp_path / "out", *copies, "--evals", places[1], f"{places[0]}/../evals"
    )  # the latter is there anyhow
    result = json.loads(next(places[0].rglob("result.json")).read_text())
    cell = result["metrics"][next(iter(result["task"]["columns"].values()))]
    assert f"{100 * cell['value']:.1f} ± {100 * cell['se']:.1f} %" in page.text
    assert page.text.count("a paired bootstrap over the items cannot tell it") == 1
    answers = [a for tag, a in page.tags if a.get("class", "").startswith("answer run-")]
    assert [a["class"] for a in answers] == ["answer run-0", "answer run-1"] * 3
    scored = lines_of(next(places[1].rglob("scored.jsonl")))
    assert " ".join(scored[0]["output"].split())[:10] in page.text


def test_what_is_worth_a_look_is_said(runs, tmp_path):
    """The same run with other numbers in its files: each accident is named, and not before it happens."""
    run = tmp_path / "accidents"
    shutil.copytree(runs[0], run)
    first, *_, last = lines_of(runs[0] / "metrics.jsonl")
    rows = [
        (last if step < 25 else first)
        | {"step": step, "grad_norm": 7.0, "weight": 0.01, "skipped": step == 9}
        for step in range(1, 31)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, *_, after = lines_of(runs[0] / "eval.jsonl")
    turned = [after | {"step": 0}, after | {"step": 15}, before | {"step": 30}]
    tasks = {"step": 30, "tasks": {"gsm8k": {"truncated": 0.5}}}
    (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*turned, tasks)))
    said, well = report(tmp_path / "out", run).text, report(tmp_path / "well", runs[0]).text
    for warning in (
        "mean p fell on held-out data",
        "ungated NLL rose on held-out data",
        "held-out NLL was lowest at step 0",
        "the gate has all but closed: the objective's mean weight s is 0.01",
        "the gradient was clipped in 100% of the steps (median norm 7",
        "1 step was skipped because loss or gradient was not finite",
        "50% of the answers to gsm8k ran into eval.max_tokens at step 30",
    ):
        assert warning in said, warning
        assert warning[:25] not in well


def test_loops_are_told_from_prose():
    assert repeats("#### " + "0" * 60)
    assert repeats("The answer is 4. " + "I think that it is four. " * 9 + "I think")
    assert not repeats("A table: " + "=" * 20)
    assert not repeats(
        "Natalia sold 48 / 2 = 24 clips in May. Natalia sold 48 + 24 = 72 clips altogether in April and May. #### 72"
    )


def test_the_wheel_holds_the_page():
    declared = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ].get("adaptsft.analysis.report", [])
    for path in (REPO / "adaptsft" / "analysis" / "report").glob("page.*"):
        assert path.suffix == ".py" or any(
            fnmatch.fnmatch(path.name, pattern) for pattern in declared
        ), path.name
