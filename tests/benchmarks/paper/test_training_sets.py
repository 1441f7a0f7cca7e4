"""The paper's training sets: from files laid out as the hub's are, to tokens by the trainer's own
way."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptsft.config.schema import DataConfig
from adaptsft.data.tokenized import open_data
from adaptsft.errors import DataError
from adaptsft.evals.tasks import load_task
from adaptsft.model.tiny import bpe_tokenizer
from benchmarks.paper.prepare import __main__ as tool
from benchmarks.paper.prepare.sets import LANGUAGES, SETS, STEP_BY_STEP
from tests.benchmarks.paper.published import (
    m23k_source,
    magicoder_source,
    magpie_source,
    muri_source,
    numina_source,
    parquet,
    prepare,
)

pytestmark = pytest.mark.usefixtures("home")


# name: source, records of each file, first prompt, its answer
CASES: dict[str, tuple[Callable[[Path], list[Path]], dict[str, int], str, str]] = {
    "numina_math": (
        numina_source,
        {"numina_math.jsonl": 30},
        "What is 0 + 2?" + STEP_BY_STEP,
        "Adding gives 2, so \\boxed{2}.",
    ),
    "m23k": (
        m23k_source,
        {"m23k.jsonl": 2},
        "Which metal?\nA. Iron\nB. Zinc" + STEP_BY_STEP,
        "Blood holds iron. \\boxed{A}",
    ),
    "magicoder": (
        magicoder_source,
        {"magicoder.jsonl": 3},
        "Return 0.",
        "```python\ndef f():\n    return 0\n```",
    ),
    "magpie_evol": (
        magpie_source,
        {"magpie_evol/magpie.jsonl": 4, "magpie_evol/evol.jsonl": 2},
        "What is rain?",
        "Water that falls from clouds.",
    ),
    "muri_it": (
        muri_source,
        {f"muri_it/{code}.jsonl": number for number, code in enumerate(LANGUAGES, 1)},
        "Yini i-mar 0?",
        "Umuntu ngumuntu ngabantu.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_published_layouts_become_what_the_trainer_reads(
    name: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    source, expected, prompt, answer = CASES[name]
    tokens = ["--max-tokens", 0] if name == "magpie_evol" else []
    files, facts = prepare(
        tmp_path, name, "--source", *source(tmp_path / "source"), "--allow-count", *tokens
    )
    assert {file: len(records) for file, records in files.items()} == expected
    assert facts["kept"] == facts["read"] == sum(expected.values())
    assert "published set has" in facts["warning"]
    ids = [record["id"] for records in files.values() for record in records]
    assert len(ids) == len(set(ids)) and ids[0].endswith("-1")

    tokenizer = bpe_tokenizer([json.dumps(records) for records in files.values()], 300)
    for file, records in files.items():
        config = DataConfig(path=str(tmp_path / "data" / file), cache_dir=str(tmp_path / "cache"))
        data, _ = open_data(config, tokenizer, seed=0, log=lambda line: None)
        assert len(data) == len(records)
    first = next(iter(expected))
    data, _ = open_data(
        DataConfig(path=str(tmp_path / "data" / first), cache_dir=str(tmp_path / "cache")),
        tokenizer,
        0,
        log=str,
    )
    ids, mask = data.example(0)
    assert tokenizer.decode(ids[mask]) == f"{answer}<|im_end|>"
    assert tokenizer.decode(ids).startswith(
        f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "task", ["math500", "minerva", "olympiadbench", "aime24", "amc23", "medqa", "medmcqa", "nejm"]
)
def test_prompts_end_as_the_evaluation_asks(task: str) -> None:
    assert load_task(task).prompt.user.endswith(STEP_BY_STEP)


def test_the_authors_sample(tmp_path: Path) -> None:
    records = [
        {
            "ability": "math",
            "extra_info": {
                "question": f"{i}?" + STEP_BY_STEP * (i % 2),
                "answer": str(i),
                "index": i,
            },
        }
        for i in range(4)
    ]
    files, _ = prepare(
        tmp_path,
        "numina_math",
        "--source",
        parquet(tmp_path / "train.parquet", records),
        "--allow-count",
    )
    assert [record["prompt"] for record in files["numina_math.jsonl"]] == [
        f"{i}?{STEP_BY_STEP}" for i in range(4)
    ]


def test_terms_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    listed = capsys.readouterr().out
    for chosen in SETS.values():
        assert tool.describe(chosen) in listed
        assert chosen.licence.split()[0] in listed
    with pytest.raises(DataError):
        tool.main(["magpie_evol", "--max-tokens", "0"])
    # before anything is fetched
    assert tool.describe(SETS["magpie_evol"]) in capsys.readouterr().out
    assert "academic research" in SETS["magpie_evol"].accept


def test_openbookqa(shared_data: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    tsv = shared_data / "qa" / "openbookqa_main_train.tsv"
    clean, _ = prepare(tmp_path, "openbookqa", "--source", tsv)
    noisy, facts = prepare(
        tmp_path,
        "openbookqa",
        "--source",
        tsv,
        "--noise-rate",
        0.3,
        "--noise-kind",
        "structured",
        "--noise-seed",
        5,
    )
    right, wrong = clean["openbookqa.jsonl"], noisy["openbookqa_noisy.jsonl"]
    assert len(right) == len(wrong) == 4957
    assert not any(record["noisy"] for record in right)
    assert (
        sum(record["noisy"] for record in wrong)
        == sum(record["completion"] != record["gold"] for record in wrong)
        == 1487
    )
    assert facts["parts"][0]["source"]["wrong_labels"] == 1487
    assert [record["prompt"] for record in right] == [record["prompt"] for record in wrong]
    first = right[0]["prompt"].splitlines()
    assert (
        "The sun is responsible for" in right[0]["prompt"]
        and "A. puppies learning new tricks" in first
    )


def test_openbookqa_as_on_the_hub(tmp_path: Path) -> None:
    choices = {"text": ["rain", "fire", "wood", "sand"], "label": ["A", "B", "C", "D"]}
    records = [
        {"id": f"7-{i}", "question_stem": f"What is wet {i}?", "choices": choices, "answerKey": "A"}
        for i in range(4)
    ]
    source = parquet(tmp_path / "train.parquet", records)
    files, _ = prepare(tmp_path, "openbookqa", "--source", source, "--allow-count")
    assert [(record["id"], record["completion"]) for record in files["openbookqa.jsonl"]] == [
        (f"7-{i}", "A") for i in range(4)
    ]
    with pytest.raises(DataError, match="two records have the id '7-0'"):
        prepare(
            tmp_path,
            "openbookqa",
            "--source",
            parquet(tmp_path / "train.parquet", records + records),
            "--allow-count",
        )


def test_figfont(tmp_path: Path, tokenizer_folder: Path) -> None:
    pytest.importorskip(
        "pyfiglet", reason="pyfiglet is not installed: pip install 'adaptsft[eval]'"
    )
    files, facts = prepare(tmp_path, "figfont", "--limit", 4)
    assert [record["id"] for record in files["figfont.jsonl"]] == ["0", "1", "2", "3"]
    assert [record["id"] for record in files["figfont_test.jsonl"]] == [
        "40000",
        "40001",
        "40002",
        "40003",
    ]
    assert facts["warning"].startswith("8 records were read")
    assert [message["role"] for message in files["figfont.jsonl"][0]["messages"]] == [
        "system",
        "user",
        "assistant",
    ]
