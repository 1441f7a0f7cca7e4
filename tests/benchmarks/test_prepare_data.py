"""Preparing the paper's training sets: from files laid out as the hub's are, to tokens by the trainer's own way."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaptsft.config.schema import DataConfig
from adaptsft.data.tokenized import open_data
from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.tasks import load_task
from adaptsft.model.tiny import bpe_tokenizer
from benchmarks.paper.prepare.pipeline import draw
from benchmarks.paper.prepare.sets import LANGUAGES, SETS, STEP_BY_STEP
from tests.conftest import REPO

spec = importlib.util.spec_from_file_location("prepare_data", REPO / "tools" / "prepare_data.py")
assert spec and spec.loader
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

TokenStatistics = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "HOME", str(tmp_path / "home")
    )  # hashes of files are noted in ~/.cache/adaptsft


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe_tokenizer(
        ["What is 1 + 2? The answer is 3.", "Umuntu ngumuntu ngabantu"], 300
    ).save_pretrained(folder)
    return folder


def prepare(
    tmp_path: Path, *arguments: object
) -> tuple[dict[str, TokenStatistics], dict[str, Any]]:
    """Run the tool into tmp_path/data. Returns the rows by file, and the provenance."""
    out = tmp_path / "data"
    assert tool.main([str(arguments[0]), "--out", str(out), *map(str, arguments[1:])]) == 0
    facts = json.loads((out / f"{written(arguments)}.json").read_text())
    assert not list(out.rglob("*.tmp"))
    files = {part["file"]: (out / part["file"]).read_text() for part in facts["parts"]}
    return {
        name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()
    }, facts


def written(arguments: tuple[object, ...]) -> object:
    return "openbookqa_noisy" if "--noise-rate" in arguments else arguments[0]


def jsonl(path: Path, rows: TokenStatistics) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: TokenStatistics) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def numina(number: int) -> dict[str, Any]:
    problem, solution = (
        f"What is {number} + 2?",
        f"Adding gives {number + 2}, so \\boxed{{{number + 2}}}.",
    )
    messages = [{"content": problem, "role": "user"}, {"content": solution, "role": "assistant"}]
    return {"source": "orca_math", "problem": problem, "solution": solution, "messages": messages}


def numina_source(folder: Path) -> list[Path]:
    parquet(folder / "train-00000-of-00002.parquet", [numina(i) for i in range(20)])
    parquet(folder / "train-00001-of-00002.parquet", [numina(i) for i in range(20, 30)])
    return [folder]


def m23k_source(folder: Path) -> list[Path]:
    row = {
        "answer_idx": 1,
        "source": "qiaojin/PubMedQA",
        "answer_letter": "A",
        "answer_string": "Iron",
        "reasoning": "Okay, so …",
    }
    row |= {
        "prompt": "Which metal?\nA. Iron\nB. Zinc",
        "distilled_answer_string": "Blood holds iron. \\boxed{A}",
        "text": "<|im_start|>…",
    }
    return [
        parquet(
            folder / "train-00000-of-00001.parquet",
            [row, row | {"prompt": "Which organ?\nA. Heart"}],
        )
    ]


def magicoder_source(folder: Path) -> list[Path]:
    row = {
        "lang": "python",
        "raw_index": 101533,
        "index": 3856,
        "seed": "def f():",
        "openai_fingerprint": "fp_eeff13170a",
    }
    rows = [
        row | {"problem": f"Return {i}.", "solution": f"```python\ndef f():\n    return {i}\n```"}
        for i in range(3)
    ]
    return [jsonl(folder / "data-oss_instruct-decontaminated.jsonl", rows)]


def magpie_source(folder: Path) -> list[Path]:
    turns = [
        {"from": "human", "value": "What is rain?"},
        {"from": "gpt", "value": "Water that falls from clouds."},
    ]
    magpie = [{"conversations": turns, "uuid": f"u{i}"} for i in range(4)]
    evol = folder / "alpaca_evol_instruct_70k.json"
    parquet(folder / "magpie" / "train-00000-of-00001.parquet", magpie)
    evol.write_text(
        json.dumps([{"instruction": "Name a river.", "output": "The Congo."}] * 2, indent=1)
    )
    return [folder / "magpie", evol]


def muri_source(folder: Path) -> list[Path]:
    for number, subset in enumerate(LANGUAGES.values(), 1):
        row = {
            "dataset_name": "MRI",
            "subdataset_name": "wikipedia",
            "language": subset,
            "split": "train",
        }
        rows = [
            row | {"input": f"Yini i-{subset} {i}?", "output": "Umuntu ngumuntu ngabantu."}
            for i in range(number)
        ]
        parquet(folder / subset / "train-00000-of-00001.parquet", rows)
    return [folder]


CASES: dict[
    str, tuple[Callable[[Path], list[Path]], dict[str, int], str, str]
] = {  # source, rows of each file, first prompt, its answer
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
    assert {file: len(rows) for file, rows in files.items()} == expected
    assert facts["kept"] == facts["read"] == sum(expected.values())
    assert "published set has" in facts["warning"]
    ids = [row["id"] for rows in files.values() for row in rows]
    assert len(ids) == len(set(ids)) and ids[0].endswith("-1")

    tokenizer = bpe_tokenizer([json.dumps(rows) for rows in files.values()], 300)
    for file, rows in files.items():
        config = DataConfig(path=str(tmp_path / "data" / file), cache_dir=str(tmp_path / "cache"))
        data, _ = open_data(config, tokenizer, seed=0, log=lambda line: None)
        assert len(data) == len(rows)
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


def test_provenance(tmp_path: Path) -> None:
    (folder,) = numina_source(tmp_path / "source")
    _, facts = prepare(
        tmp_path, "numina_math", "--source", folder, "--allow-count", "--sample", 7, "--seed", 3
    )
    (part,) = facts["parts"]
    assert (part["read"], part["kept"], part["dropped"]) == (
        30,
        7,
        {"broken": 0, "too_long": 0, "not_drawn": 23},
    )
    assert [Path(file["path"]).name for file in part["source"]["files"]] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert all(len(file["sha256"]) == 64 for file in part["source"]["files"])
    assert facts["arguments"]["seed"] == 3 and facts["versions"]["datasets"]


def test_the_authors_sample(tmp_path: Path) -> None:
    rows = [
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
        parquet(tmp_path / "train.parquet", rows),
        "--allow-count",
    )
    assert [row["prompt"] for row in files["numina_math.jsonl"]] == [
        f"{i}?{STEP_BY_STEP}" for i in range(4)
    ]


def test_a_sample_depends_on_seed_and_content_alone(tmp_path: Path) -> None:
    def drawn(rows: TokenStatistics, *options: object) -> set[str]:
        source = jsonl(tmp_path / "rows.jsonl", rows)
        files, _ = prepare(tmp_path, "numina_math", "--source", source, "--allow-count", *options)
        return {row["prompt"].removesuffix(STEP_BY_STEP) for row in files["numina_math.jsonl"]}

    rows = [numina(i) for i in range(300)]
    sample = drawn(rows, "--sample", 100)
    assert len(sample) == 100
    assert (
        sample == drawn(rows[::-1], "--sample", 100) == drawn(rows, "--sample", 100, "--suffix", "")
    )
    assert drawn(rows, "--sample", 40) < sample
    assert (
        len(sample & drawn(rows, "--sample", 100, "--seed", 1)) < 60
    )  # 33 expected; 60 is over 6 standard deviations off
    columns = (tmp_path / "data" / "numina_math.jsonl").read_text().splitlines()
    places = [int(json.loads(line)["id"].split("-")[1]) for line in columns]
    assert places == sorted(places)  # in the source's order: the trainer shuffles


def test_a_sample_is_uniform() -> None:
    rows = [(number, {"text": str(number)}) for number in range(200)]
    counts = np.zeros(200)
    for seed in range(400):
        counts[list(draw(rows, 50, seed))] += 1
    assert abs(counts - 100).max() < 45  # 5 standard deviations of 8.7


def test_length_is_counted_as_the_trainer_does(tmp_path: Path, tokenizer_folder: Path) -> None:
    turns = [
        [{"from": "human", "value": "word " * n}, {"from": "gpt", "value": "So it is."}]
        for n in range(1, 41)
    ]
    source = jsonl(tmp_path / "magpie.jsonl", [{"conversations": each} for each in turns])
    evol = jsonl(tmp_path / "evol.jsonl", [{"instruction": "Hm?", "output": "Yes."}])
    narrow = tmp_path / "narrow"
    bpe_tokenizer(["word word"], 270).save_pretrained(narrow)

    def kept(*options: object) -> tuple[int, dict[str, int]]:
        files, facts = prepare(
            tmp_path, "magpie_evol", "--source", source, evol, "--allow-count", *options
        )
        return len(files["magpie_evol/magpie.jsonl"]), facts["parts"][0]["dropped"]

    one, dropped = kept("--tokenizer", tokenizer_folder, "--max-tokens", 100)
    assert 0 < one < 40 and dropped["too_long"] == 40 - one
    other, _ = kept("--tokenizer", narrow, "--max-tokens", 100)
    assert other != one and kept("--tokenizer", tokenizer_folder, narrow, "--max-tokens", 100)[
        0
    ] == min(one, other)
    assert kept("--max-tokens", 0)[0] == 40
    config = DataConfig(
        path=str(tmp_path / "data/magpie_evol/magpie.jsonl"),
        max_length=100,
        cache_dir=str(tmp_path / "cache"),
    )
    from transformers import AutoTokenizer

    data, _ = open_data(config, AutoTokenizer.from_pretrained(tokenizer_folder), 0, log=str)
    assert len(data) == one and data.dropped == [40 - one]


BROKEN = [
    (
        {"solution": "3"},
        r"rows\.jsonl:3: field 'problem' is missing; the record has the fields solution.*--drop-broken",
    ),
    (
        {"problem": "1?", "solution": " "},
        r"rows\.jsonl:3: field 'solution' is empty.*write the answer.*--drop-broken",
    ),
    ({"problem": "1?", "solution": None}, r"rows\.jsonl:3: field 'solution' is null"),
    ({"problem": "", "solution": "3"}, r"rows\.jsonl:3: field 'problem' is empty"),
]


@pytest.mark.parametrize(("row", "message"), BROKEN)
def test_a_broken_row(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [numina(0), numina(1), row, numina(2)])
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, "numina_math", "--source", source, "--allow-count")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    files, facts = prepare(
        tmp_path, "numina_math", "--source", source, "--allow-count", "--drop-broken"
    )
    assert [row["id"] for row in files["numina_math.jsonl"]] == [
        "numina_math-1",
        "numina_math-2",
        "numina_math-4",
    ]
    assert facts["parts"][0]["dropped"] == {"broken": 1, "too_long": 0, "not_drawn": 0}
    assert len(facts["parts"][0]["broken_rows"]) == 1


def test_a_conversation_with_a_strange_speaker(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "magpie.jsonl", [{"conversations": [{"from": "moderator", "value": "Hm."}]}]
    )
    evol = jsonl(tmp_path / "evol.jsonl", [{"instruction": "Hm?", "output": "Yes."}])
    with pytest.raises(
        DataError,
        match=r"magpie\.jsonl:1: field 'conversations', message 0: unknown role 'moderator'",
    ):
        prepare(
            tmp_path, "magpie_evol", "--source", source, evol, "--max-tokens", 0, "--allow-count"
        )


def test_another_number_of_rows_is_an_error_and_leaves_the_old_files(tmp_path: Path) -> None:
    (source,) = magicoder_source(tmp_path / "source")
    files, _ = prepare(tmp_path, "magicoder", "--source", source, "--allow-count")
    with pytest.raises(
        DataError,
        match=r"3 rows were read, and the published set has 75,150 to 75,249.*--allow-count",
    ):
        prepare(tmp_path, "magicoder", "--source", source)
    assert (tmp_path / "data" / "magicoder.jsonl").read_text().count("\n") == len(
        files["magicoder.jsonl"]
    )
    assert not list((tmp_path / "data").glob("*.tmp"))
    _, facts = prepare(tmp_path, "magicoder", "--source", source, "--limit", 2)
    assert facts["kept"] == 2 and facts["warning"].startswith("2 rows were read")


def test_arguments_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, other = magpie_source(tmp_path / "source")
    for arguments, message in [
        (
            ["magpie_evol", "--source", source, other],
            "--max-tokens 2048: name what counts them by --tokenizer",
        ),
        (
            ["magpie_evol", "--source", source, "--max-tokens", 0],
            r"this is one source, and magpie_evol/evol\.jsonl needs another",
        ),
        (["magicoder", "--source", source, other], "2 sources for a set of 1"),
        (
            ["magicoder", "--source", source, "--tokenizer", "x"],
            "counts nothing without --max-tokens",
        ),
        (
            ["magicoder", "--tokenizer", tmp_path / "none", "--max-tokens", 9, "--source", source],
            "none: cannot be loaded",
        ),
        (["muri_it", "--source", source.parent], r"there is no folder .*mar"),
        (
            ["muri_it", "--source", jsonl(tmp_path / "all.jsonl", [{"input": "a", "output": "b"}])],
            "this is one source, and muri_it/te",
        ),
        (["openbookqa", "--noise-rate", 1.5], "--noise-rate 1.5"),
        (
            ["magicoder", "--source", other, "--out", source / "train-00000-of-00001.parquet"],
            "--out .*cannot be written",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            prepare(tmp_path, *arguments)
    with pytest.raises(SystemExit):
        tool.main(["magicoder", "--noise-rate", "0.3"])  # an option of another set
    assert "unrecognized arguments" in capsys.readouterr().err


def test_without_the_hub(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"the hub does not give UCSC-VLAA/m23k-tokenized: .*--source"
    ):
        prepare(tmp_path, "m23k", "--source", "UCSC-VLAA/m23k-tokenized@main")


def test_terms_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    listed = capsys.readouterr().out
    for chosen in SETS.values():
        assert tool.describe(chosen) in listed
        assert chosen.licence.split()[0] in listed
    with pytest.raises(DataError):
        tool.main(["magpie_evol", "--max-tokens", "0"])
    assert (
        tool.describe(SETS["magpie_evol"]) in capsys.readouterr().out
    )  # before anything is fetched
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
    assert not any(row["noisy"] for row in right)
    assert (
        sum(row["noisy"] for row in wrong)
        == sum(row["completion"] != row["gold"] for row in wrong)
        == 1487
    )
    assert facts["parts"][0]["source"]["wrong_labels"] == 1487
    assert [row["prompt"] for row in right] == [row["prompt"] for row in wrong]
    first = right[0]["prompt"].splitlines()
    assert (
        "The sun is responsible for" in right[0]["prompt"]
        and "A. puppies learning new tricks" in first
    )


def test_openbookqa_as_on_the_hub(tmp_path: Path) -> None:
    choices = {"text": ["rain", "fire", "wood", "sand"], "label": ["A", "B", "C", "D"]}
    rows = [
        {"id": f"7-{i}", "question_stem": f"What is wet {i}?", "choices": choices, "answerKey": "A"}
        for i in range(4)
    ]
    source = parquet(tmp_path / "train.parquet", rows)
    files, _ = prepare(tmp_path, "openbookqa", "--source", source, "--allow-count")
    assert [(row["id"], row["completion"]) for row in files["openbookqa.jsonl"]] == [
        (f"7-{i}", "A") for i in range(4)
    ]
    with pytest.raises(DataError, match="two rows have the id '7-0'"):
        prepare(
            tmp_path,
            "openbookqa",
            "--source",
            parquet(tmp_path / "train.parquet", rows + rows),
            "--allow-count",
        )


def test_figfont(tmp_path: Path, tokenizer_folder: Path) -> None:
    pytest.importorskip(
        "pyfiglet", reason="pyfiglet is not installed: pip install 'adaptsft[eval]'"
    )
    files, facts = prepare(tmp_path, "figfont", "--limit", 4)
    assert [row["id"] for row in files["figfont.jsonl"]] == ["0", "1", "2", "3"]
    assert [row["id"] for row in files["figfont_test.jsonl"]] == [
        "40000",
        "40001",
        "40002",
        "40003",
    ]
    assert facts["warning"].startswith("8 rows were read")
    assert [message["role"] for message in files["figfont.jsonl"][0]["messages"]] == [
        "system",
        "user",
        "assistant",
    ]
