"""Making a table again: what it consists of, its stages in small, and what is asked before anything
runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adaptsft import diagnose, train as trainer
from adaptsft.config.schema import Config, DataConfig
from adaptsft.evals.__main__ import main as evaluate
from adaptsft.evals.tasks import load_task
from benchmarks.paper.reproduce import small, stages as stages_module, table as tables
from benchmarks.paper.reproduce.__main__ import main as reproduce
from benchmarks.paper.reproduce.table import BASE, hub_name, jobs, paper_results, read
from tests.benchmarks.paper.test_recipes import EVERY


def test_tables_name_their_recipes_tasks_and_results() -> None:
    """Every recipe is of a table, and every column of a task's metric and of the paper's column."""
    found = set()
    for name in tables.names():
        table, content = read(name), paper_results(read(name).results)
        assert set(table.objectives) >= {"auto", *table.sweep}
        found |= {job.recipe for model in table.models for job in jobs(name, table, model, [])}
        for column in table.columns.values():
            for task in filter(None, (column.task, column.base_task)):
                assert (
                    column.metric.split("/")[0] in load_task(task).columns.values()
                    or column.metric == "jw_paper"
                )
        if table.results:
            assert content["columns"] == [
                *table.columns,
                *([table.average] if table.average else []),
            ]
            assert {row["model"] for row in content["rows"]} == set(table.models)
            assert {row["objective"] for row in content["rows"]} <= {BASE, *table.objectives}
        for model in table.models:
            assert tables.model_of(name, table, hub_name(name, model)) == model
    assert found == set(EVERY)


def test_printed_averages() -> None:
    """Exactly the rows marked as errata disagree with the mean of their columns, by more than the
    rounding of what is printed."""
    wrong, marked, count = set(), set(), 0
    for key, content in yaml.safe_load(tables.PAPER.read_text()).items():
        for row in content["rows"]:
            assert len(row["values"]) == len(content["columns"]), (key, row)
            if not content["columns"][-1].startswith("Avg"):
                assert "erratum" not in row
                continue
            *values, printed = row["values"]
            mean = sum(values) / len(values)
            digits = 1 if key in ("table9", "table10", "table12") else 2
            count += 1
            if abs(mean - printed) > 10**-digits:
                wrong.add((key, row["model"], row["objective"]))
            if "erratum" in row:
                marked.add((key, row["model"], row["objective"]))
                assert (
                    row["erratum"]["printed"] == printed
                    and abs(row["erratum"]["recomputed"] - mean) < 0.0051
                )
    assert wrong == marked and len(wrong) == 13 and count == 40


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stages run in this process: the same programs with the same arguments, without starting
    Python anew for each."""
    monkeypatch.chdir(tmp_path)
    programs = {
        "adaptsft.train": trainer.main,
        "adaptsft.diagnose": diagnose.main,
        "adaptsft.evals": evaluate,
    }

    def run(words: list[str], log: Path) -> None:
        assert words[:2] == ["python", "-m"] and programs[words[2]](words[3:]) == 0

    monkeypatch.setattr(stages_module, "command", run)


@pytest.mark.parametrize("name", tables.names())
def test_stand_ins_are_tasks_of_what_the_table_reads(name: str, tmp_path: Path) -> None:
    """What is written for --small is accepted, as what it stands in for is."""
    table = read(name)
    small.tasks(tmp_path, table)
    for column in table.columns.values():
        for task in filter(None, (column.task, column.base_task)):
            stand_in = load_task(str(tmp_path / "tasks" / f"{task}.yaml"))
            assert stand_in.items == small.ITEMS
            assert column.metric.split("/")[0] in (*stand_in.columns.values(), "jw_paper")


def in_small() -> list[Any]:
    """Every table with each of its models, so that each recipe is trained and its model evaluated;
    in every test run, one."""
    pairs = [(name, model) for name in tables.names() for model in read(name).models]
    few = ("table4", "qwen2.5-1.5b")
    return [
        pytest.param(*pair, id="-".join(pair), marks=[] if pair == few else pytest.mark.nightly)
        for pair in pairs
    ]


@pytest.mark.parametrize(("name", "model"), in_small())
def test_reproduce_in_small(
    name: str, model: str, here: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All stages of a table's model, with recorded answers replayed; the same command again finds
    everything done."""
    command = [name, "--small", "--model", model, "--out", str(tmp_path / "out")]
    assert reproduce(command) == 0, capfd.readouterr().err
    rows, table = json.loads((tmp_path / "out" / "rows.json").read_text()), read(name)
    ours = [row for row in rows if row["origin"] == "ours"]
    wanted = {"auto", "neg_p", "nll"} if name == "fig3" else {"auto", "nll"}
    assert {row["objective"] for row in ours} >= (wanted - {"nll"} if table.against else wanted)
    assert all(0 <= row["value"] <= 100 for row in ours)
    headers = {
        header
        for header, column in table.columns.items()
        if not column.models or model in column.models
    }
    assert {row["column"] for row in ours} - {table.average} == headers - {"LC WR"}, (
        "fitted with a file of the leaderboard"
    )
    if table.likelihood:
        assert all(0 < row["mean_p"] < 1 for row in ours)
    (text, _), markdown = capfd.readouterr(), (tmp_path / "out" / "table.md").read_text()
    assert "0 of " in text and "these numbers mean nothing" in markdown
    assert reproduce([*command, "--dry-run"]) == 0
    stages = text.split(" stages finished")[0].rsplit(" of ", 1)[1]
    assert f"{stages} of {stages} stages finished" in capfd.readouterr()[0]


def test_what_is_asked_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {
        "table2 --model llama-3.1-8b": ["data/numina_math.jsonl", "--accept-gated"],
        "table8": ["--judge"],
        "table9": ["--allow-code-exec", "--data-dir"],
    }
    for arguments, wanted in asked.items():
        assert reproduce(arguments.split()) == 2
        asked_for = capsys.readouterr().err
        assert all(text in asked_for for text in wanted), asked_for
    assert list(tmp_path.iterdir()) == [], "nothing has run"
    for arguments, message in {
        "table5": "no such table",
        "table2 --model gpt2": "Qwen/Qwen2.5-Math-1.5B",
        "table2 --objectives focal": "nll, threshold",
    }.items():
        assert reproduce(arguments.split()) == 2 and message in capsys.readouterr().err


def test_stages_depend_on_the_data(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("one\n")
    config = Config(data=DataConfig(path=str(tmp_path / "data.jsonl")))
    before = stages_module.contents(config)
    assert before == stages_module.contents(config) and len(before) == 1
    (tmp_path / "data.jsonl").write_text("another\n")
    assert stages_module.contents(config) != before
    assert stages_module.contents(Config(data=DataConfig(path=str(tmp_path / "later.jsonl")))) == []


def test_dry_run_prints_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "table2 --model Qwen/Qwen2.5-Math-7B --gpus 2 --strict --objectives threshold"
    assert reproduce([*arguments.split(), "--dry-run", "train.micro_batch_size=2"]) == 0
    out = capsys.readouterr().out
    train = next(line for line in out.splitlines() if "adaptsft.train" in line)
    assert train.startswith("torchrun --standalone --nproc-per-node 2 -m adaptsft.train ")
    assert "parts/strict.yaml objective.normalizer=kept train.micro_batch_size=2" in train
    assert out.count("adaptsft.train") == 2, "threshold, and auto beside it"
    assert (
        "--template chatml" in out
        and "GPU hours" in out
        and "benchmarks.paper.prepare numina_math" in out
    )
