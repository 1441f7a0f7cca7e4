"""Readers of json, csv and parquet files, and every kind of bad record."""

import json
from pathlib import Path

import datasets
import datasets.config as datasets_config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaptsft.errors import DataError
from tests.data.records import ASSISTANT, USER, learned, opened, tokenizer

GOOD = '{"prompt": "a", "completion": "b"}\n'


def talk(*messages) -> str:
    return json.dumps({"messages": messages}) + "\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD + '{"prompt": "a", "compl\n', ["train.jsonl:2", "not valid JSON", "column"]),
        (GOOD + "\n[1, 2]\n", ["train.jsonl:3", "not a JSON object", "list"]),
        (GOOD + '"text"\n', ["train.jsonl:2", "not a JSON object"]),
        (GOOD + '{"prompt": "a"}\n', ["train.jsonl:2", "'completion' is missing", "prompt"]),
        (GOOD + '{"prompt": "a", "completion": null}\n', ["train.jsonl:2", "'completion' is null"]),
        (
            GOOD + '{"prompt": "a", "completion": " \\n"}\n',
            ["train.jsonl:2", "'completion' is empty"],
        ),
        (
            GOOD + '{"prompt": "a", "completion": 72}\n',
            ["train.jsonl:2", "'completion' is not text but int", "72"],
        ),
        (GOOD + '{"prompt": NaN, "completion": "b"}\n', ["train.jsonl:2", "'prompt' is NaN"]),
        (
            GOOD + '{"prompt": "a", "completion": "\\ud83d"}\n',
            ["train.jsonl:2", "'completion'", "surrogate"],
        ),
        (
            GOOD + '{"prompt": ["a"], "completion": "b"}\n',
            ["train.jsonl:2", "'prompt', message 0", "role and content"],
        ),
        (GOOD.encode() + b'{"prompt": "\xff"}\n', ["train.jsonl:2", "not UTF-8"]),
        (
            '{"sentence": "a", "label": "b"}\n',
            ["train.jsonl:1", "layout", "sentence, label", "data.fields="],
        ),
        ('{"prompt": "a"}\n', ["train.jsonl:1", "layout", "completion"]),
        (
            talk(USER, {"role": "machine", "content": "b"}),
            ["train.jsonl:1", "message 1", "'machine'", "assistant"],
        ),
        (talk(USER, {"role": "assistant"}), ["train.jsonl:1", "message 1", "content is missing"]),
        (
            talk({"role": "user", "content": None}, ASSISTANT),
            ["train.jsonl:1", "message 0", "content is null"],
        ),
        (
            talk(USER, {"role": "assistant", "content": ""}),
            ["train.jsonl:1", "message 1", "content is empty"],
        ),
        (
            talk({"role": "user", "content": [1]}, ASSISTANT),
            ["train.jsonl:1", "message 0", "content[0] is not text, '1'"],
        ),
        (talk(USER), ["train.jsonl:1", "no assistant turn"]),
        (talk(ASSISTANT), ["train.jsonl:1", "starts with the assistant"]),
        (talk(), ["train.jsonl:1", "'messages' must be a list"]),
        (
            talk(USER, ASSISTANT) + '{"prompt": "a"}\n',
            ["train.jsonl:2", "'messages' is missing", "prompt"],
        ),
        ("", ["train.jsonl", "empty"]),
        ("\n \n", ["train.jsonl", "no example"]),
        ("[]", ["train.jsonl", "no example"]),
        (
            '[{"prompt": "a", "completion": "b"}, {"prompt": 1}]',
            ["train.jsonl: item 2", "'prompt' is not text"],
        ),
        ('[{"prompt": "a", "completion": "b"}, 3]', ["train.jsonl: item 2", "not a JSON object"]),
        (
            '[{"prompt": "a", "completion": "b"} {"prompt"',
            ["train.jsonl: item 1", "',' or ']' expected"],
        ),
        ('[{"prompt": "a", "completion": "b"},]', ["train.jsonl: item 2", "not valid JSON"]),
        ('[{"prompt": "a", "completion": "b"}', ["train.jsonl: item 1", "ends within the array"]),
        (
            '[{"prompt": "a", "completion": "b"}]\n[{"prompt": "a", "completion": "b"}]',
            ["train.jsonl", "more after the array"],
        ),
        (b'[{"prompt": "\xff"}]', ["train.jsonl", "not UTF-8"]),
    ],
)
def test_bad_record(settings, content, said):
    Path(settings.path).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        opened(settings)
    for part in said:
        assert part in str(error.value)
    cache = Path(settings.cache_dir)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_table_of_several_row_groups(tmp_path, settings):
    table = pa.table(
        {
            "prompt": ["a"] * 2500,
            "completion": [str(i) for i in range(2500)],
            "messages": [[]] * 2500,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    settings.fields = {"messages": "none"}
    tok = tokenizer()
    data = opened(settings, tok, path=str(tmp_path / "a.parquet"))
    assert [learned(data, tok, i) for i in range(2500)] == [f"{i}<|im_end|>" for i in range(2500)]
    assert data.where(2101) == f"{tmp_path / 'a.parquet'}: row 2102"


def test_a_json_array_longer_than_the_read_buffer(tmp_path, settings, monkeypatch):
    monkeypatch.setattr("adaptsft.data.readers.CHUNK", 7)
    records = [{"prompt": "p" * i, "completion": f"ü{i},]"} for i in range(30)]
    tok = tokenizer()
    texts = []
    for indent in (None, 3):
        path = tmp_path / f"{indent}.json"
        path.write_text(json.dumps(records, indent=indent, ensure_ascii=False))
        data = opened(settings, tok, path=str(path))
        texts.append([learned(data, tok, i) for i in range(len(data))])
    assert texts == [[f"ü{i},]<|im_end|>" for i in range(30)]] * 2


def test_braces_in_a_file_name(tmp_path, settings):
    path = tmp_path / "a{0}{b}.jsonl"
    path.write_text(GOOD + "{}")
    with pytest.raises(DataError) as error:
        opened(settings, path=str(path))
    assert str(error.value).startswith(f"{path}:2: field 'prompt' is missing")


def test_bad_table_row(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf")
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(
        [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}]
    ).to_parquet(path)
    with pytest.raises(DataError, match=r"a\.parquet: row 2: field 'completion' is null"):
        opened(settings, path=str(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as parquet"):
        opened(settings, path=str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'prompt,completion\n\n"a\nb",c\nd,\n', ":5: field 'completion' is empty"),
        (b"prompt,completion\na,b\na\n", ":3: 1 cells in a table of 2 columns"),
        (b'prompt,completion\na,b\na,"b\n', ":3: not valid CSV"),
        (b"prompt,completion\na,\xff\n", ": not UTF-8"),
        (
            b"question,answer\na,b\n",
            ":2: layout not recognised: the record has the fields question, answer",
        ),
        (b"prompt,completion\n", ": holds no example"),
    ],
)
def test_bad_csv(tmp_path, settings, content, said):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        opened(settings, path=str(tmp_path / "a.csv"))
    assert f"a.csv{said}" in str(error.value)
