"""The shipped tasks and their data: pinned, counted, and refused where they differ."""

import gzip
import json

import pytest
import yaml

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals import data, readers, tasks
from adaptsft.evals.__main__ import main

# the benchmarks of the paper
WANTED = {
    "math500",
    "minerva",
    "olympiadbench",
    "aime24",
    "amc23",
    "gsm8k",
    "medmcqa",
    "medqa",
    "pubmedqa",
    "mmlu_pro_medical",
    "gpqa_medical",
    "lancet",
    "medbullets_op4",
    "medbullets_op5",
    "medxpertqa",
    "nejm",
    "humaneval",
    "mbpp",
    "alpaca_eval",
    "figfont",
    "openbookqa",
    "mmlu",
    "arc_challenge",
    "winogrande",
    "truthfulqa",
    *(f"mmlu_prox_{language}" for language in ("mr", "te", "ne", "sw", "wo", "yo", "zu")),
}

SHIPPED = {name: tasks.load_task(name) for name in tasks.names()}
# one task per file: the variants of a task share theirs
ON_FILE = {
    source.file: name
    for name, task in reversed(SHIPPED.items())
    for source in task.sources
    if source.file and source.verified
}


def test_every_benchmark_has_a_task():
    assert set(SHIPPED) >= WANTED
    for name, task in SHIPPED.items():
        assert tasks.from_dict(tasks.to_dict(task), name) == task
        for source in task.sources:
            assert source.verified == (source.sha256 is not None), "a hash is of real data, or null"


def test_no_two_tasks_fill_the_same_column():
    """A task that extends another one must not report its figures under the other's header."""
    filled: dict[str, str] = {}
    for name, task in SHIPPED.items():
        for column in task.columns:
            assert column not in filled, f"{column}: filled by {filled[column]} and {name}"
            filled[column] = name


def test_listing(capsys, monkeypatch):
    monkeypatch.setattr(tasks, "load_task", SHIPPED.get)
    assert main(["tasks"]) == 0
    listed = capsys.readouterr().out
    assert (
        "math500                 500  verified   math-paper, math-robust               MATH-500"
        in listed
    )
    assert "nejm                    603  gated      medical-paper" in listed


@pytest.mark.parametrize("name", sorted(ON_FILE.values()))
def test_real_data_is_what_the_task_names(shared_data, name):
    task = SHIPPED[name]
    found = data.load_items(task, shared_data)
    assert len(found.items) == task.items and found.verified
    assert len({item.id for item in found.items}) == task.items
    for item in found.items:
        assert item.fields["question"].strip()
        if "options" in item.fields:
            assert (
                item.fields["gold"] in item.fields["options"] and len(item.fields["options"]) >= 2
            )
        elif "gold" in item.fields:
            assert item.fields["gold"].strip()


def test_readers_on_real_records(shared_data):
    def first(name, number=0):
        return data.load_items(SHIPPED[name], shared_data).items[number].fields

    assert first("math500")["gold"] == "\\left( 3, \\frac{\\pi}{2} \\right)"
    assert first("gsm8k")["gold"] == "18"
    assert first("amc23")["gold"] == "27.0"
    assert first("olympiadbench")["gold"] == "2"
    assert first("minerva")["gold"] == "1.6"
    medqa = first("medqa")
    assert (
        medqa["gold"] == "B" and medqa["options"]["D"] == "Refuse to dictate the operative report"
    )
    assert (
        medqa["listed"].splitlines()[0]
        == "A. Disclose the error to the patient and put it in the operative report"
    )
    assert "Answer Choices" not in medqa["question"]
    assert first("openbookqa")["options"]["C"] == "buy less with monopoly money"
    assert first("pubmedqa")["options"] == {"A": "yes", "B": "no", "C": "maybe"}


def test_options_may_contain_letters_in_brackets():
    record = {
        "id": "x",
        "question": "Which (A) one?\nAnswer Choices: (A) vitamin (B) B12 (B) iron (C) (A) and (B)",
        "label": ["C"],
    }
    fields = readers.READERS["inline_choices"](record)
    # the first "(B) " is taken for the second option: the published layout cannot tell them apart
    assert fields["options"] == {"A": "vitamin", "B": "B12 (B) iron", "C": "(A) and (B)"}
    assert fields["question"] == "Which (A) one?"


def test_last_boxed():
    assert readers.last_boxed("\\boxed{1} and \\boxed{\\frac{a}{b}} end}") == "\\frac{a}{b}"
    with pytest.raises(ValueError, match="never closed"):
        readers.last_boxed("\\boxed{{1}")
    with pytest.raises(ValueError, match="no "):
        readers.last_boxed("1")


def own_task(folder, records, **keys):
    (folder / "d").mkdir(exist_ok=True)
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    (folder / "d" / "own.jsonl.gz").write_bytes(gzip.compress(content, mtime=0))
    values = {
        "title": "Own",
        "group": "Own",
        "items": len(records),
        "graders": ["math-paper"],
        "columns": {"Own": "math-paper"},
        "sources": [{"file": "own.jsonl.gz", "fields": {"gold": "answer"}}],
        "prompt": {"user": "{question}!"},
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(values | keys))
    return str(path)


RECORDS = [
    {"id": "a", "question": "1+1", "answer": "2"},
    {"id": "b", "question": "2+2", "answer": "4"},
]


def test_a_new_evaluation_is_one_yaml(tmp_path):
    items = data.load_items(tasks.load_task(own_task(tmp_path, RECORDS)), tmp_path / "d")
    assert items.items == [
        ("a", {"question": "1+1", "gold": "2"}),
        ("b", {"question": "2+2", "gold": "4"}),
    ]
    assert not items.verified
    child = tmp_path / "child.yaml"
    child.write_text("extends: own\ntitle: Child\n")
    assert tasks.load_task(str(child)).prompt.user == "{question}!"
    math = tmp_path / "math.yaml"
    math.write_text("extends: math500\nitems: 3\n")
    assert tasks.load_task(str(math)).decoding.n == 16, (
        "a file anywhere may start from a shipped task"
    )


def test_other_data_is_refused(tmp_path):
    task = tasks.load_task(own_task(tmp_path, RECORDS, items=3))
    with pytest.raises(DataError, match=r"has 2 items, the task names 3"):
        data.load_items(task, tmp_path / "d")
    source = {"file": "own.jsonl.gz", "fields": {"gold": "answer"}, "sha256": "0" * 64}
    with pytest.raises(DataError, match="the task names 0000"):
        data.load_items(
            tasks.load_task(own_task(tmp_path, RECORDS, sources=[source])), tmp_path / "d"
        )
    with pytest.raises(
        DataError, match=r"record 2: field 'gold' is missing; the record has id, question"
    ):
        data.load_items(
            tasks.load_task(own_task(tmp_path, [RECORDS[0], {"id": "b", "question": "?"}])),
            tmp_path / "d",
        )
    with pytest.raises(
        DataError, match=r"found none of its files under --data-dir: .*elsewhere/own\.jsonl\.gz"
    ):
        data.load_items(task, tmp_path / "elsewhere")
    (tmp_path / "d" / "own.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        data.load_items(task, tmp_path / "d")


def test_the_hub_out_of_reach_says_what_to_fetch():
    for name, hub, file in (
        ("medqa", "UCSC-VLAA/m1_eval_data", ""),
        ("openbookqa", "allenai/openbookqa", r"qa/openbookqa_main_test\.tsv.*"),
    ):
        with pytest.raises(
            DataError, match=f"{name}: the hub does not give {hub}: .*{file}--data-dir"
        ):
            data.load_items(SHIPPED[name])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"promt": {}}, "promt"),
        ({"items": "many"}, "items"),
        ({"graders": []}, "graders"),
        ({"graders": ["math"]}, "graders: math: choose from math-paper"),
        ({"sources": []}, "sources"),
        ({"sources": [{"file": "f", "reader": "boxed"}]}, "reader: boxed: choose one of"),
        ({"sources": [{"file": "f", "verified": True}]}, "verified: true needs a sha256"),
        ({"sources": [{"split": "test"}]}, "needs file, hub or generator"),
        ({"runner": "harness"}, "harness_task"),
        ({"runner": "harness", "harness_task": "mmlu"}, "graders: math-paper: lm-eval grades"),
        ({"runner": "harness", "harness_task": "mmlu_prox_sw"}, "only mcq-robust reads"),
        ({"decoding": {"n": 0}}, "decoding: n: 0: it must be 1 or more"),
    ],
)
def test_a_bad_task_is_refused(tmp_path, keys, message):
    with pytest.raises(ConfigError, match=message):
        tasks.load_task(own_task(tmp_path, RECORDS, **keys))


def test_a_misspelt_task():
    with pytest.raises(ConfigError, match="did you mean math500"):
        tasks.load_task("math50")
