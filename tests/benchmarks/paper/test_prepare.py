"""Preparing a training set: samples, lengths, broken records, counts and arguments."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptsft.config.schema import DataConfig
from adaptsft.data.tokenized import open_data
from adaptsft.errors import ConfigError, DataError
from adaptsft.model.tiny import bpe_tokenizer
from benchmarks.paper.prepare import __main__ as tool
from benchmarks.paper.prepare.pipeline import draw
from benchmarks.paper.prepare.sets import STEP_BY_STEP
from tests.benchmarks.paper.published import (
    Records,
    jsonl,
    magicoder_source,
    magpie_source,
    numina,
    numina_source,
    prepare,
)

pytestmark = pytest.mark.usefixtures("home")


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


def test_a_sample_depends_on_seed_and_content_alone(tmp_path: Path) -> None:
    def drawn(records: Records, *options: object) -> set[str]:
        source = jsonl(tmp_path / "rows.jsonl", records)
        files, _ = prepare(tmp_path, "numina_math", "--source", source, "--allow-count", *options)
        return {
            record["prompt"].removesuffix(STEP_BY_STEP) for record in files["numina_math.jsonl"]
        }

    records = [numina(i) for i in range(300)]
    sample = drawn(records, "--sample", 100)
    assert len(sample) == 100
    assert (
        sample
        == drawn(records[::-1], "--sample", 100)
        == drawn(records, "--sample", 100, "--suffix", "")
    )
    assert drawn(records, "--sample", 40) < sample
    # 33 expected; 60 is over 6 standard deviations off
    assert len(sample & drawn(records, "--sample", 100, "--seed", 1)) < 60
    columns = (tmp_path / "data" / "numina_math.jsonl").read_text().splitlines()
    places = [int(json.loads(line)["id"].split("-")[1]) for line in columns]
    assert places == sorted(places)  # in the source's order: the trainer shuffles


def test_a_sample_is_uniform() -> None:
    records = [(number, {"text": str(number)}) for number in range(200)]
    counts = np.zeros(200)
    for seed in range(400):
        counts[list(draw(records, 50, seed))] += 1
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
        r"rows\.jsonl:3: field 'problem' is missing; "
        r"the record has the fields solution.*--drop-broken",
    ),
    (
        {"problem": "1?", "solution": " "},
        r"rows\.jsonl:3: field 'solution' is empty.*write the answer.*--drop-broken",
    ),
    ({"problem": "1?", "solution": None}, r"rows\.jsonl:3: field 'solution' is null"),
    ({"problem": "", "solution": "3"}, r"rows\.jsonl:3: field 'problem' is empty"),
]


@pytest.mark.parametrize(("record", "message"), BROKEN)
def test_a_broken_record(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [numina(0), numina(1), record, numina(2)])
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, "numina_math", "--source", source, "--allow-count")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    files, facts = prepare(
        tmp_path, "numina_math", "--source", source, "--allow-count", "--drop-broken"
    )
    assert [record["id"] for record in files["numina_math.jsonl"]] == [
        "numina_math-1",
        "numina_math-2",
        "numina_math-4",
    ]
    assert facts["parts"][0]["dropped"] == {"broken": 1, "too_long": 0, "not_drawn": 0}
    assert len(facts["parts"][0]["broken_records"]) == 1


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


def test_another_number_of_records_is_an_error_and_leaves_the_old_files(tmp_path: Path) -> None:
    (source,) = magicoder_source(tmp_path / "source")
    files, _ = prepare(tmp_path, "magicoder", "--source", source, "--allow-count")
    with pytest.raises(
        DataError,
        match=r"3 records were read, and the published set has 75,150 to 75,249.*--allow-count",
    ):
        prepare(tmp_path, "magicoder", "--source", source)
    assert (tmp_path / "data" / "magicoder.jsonl").read_text().count("\n") == len(
        files["magicoder.jsonl"]
    )
    assert not list((tmp_path / "data").glob("*.tmp"))
    _, facts = prepare(tmp_path, "magicoder", "--source", source, "--limit", 2)
    assert facts["kept"] == 2 and facts["warning"].startswith("2 records were read")


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
