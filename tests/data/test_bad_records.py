"""Bad records: the first is an error that counts the others, or all are left out and listed."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaptsft.data.tokenized import open_data
from adaptsft.errors import DataError
from adaptsft.train import train
from tests.data.records import ASSISTANT, USER, learned, opened, tokenizer, write
from tests.runs import small_config

GOOD = {"prompt": "a", "completion": "b"}
NO_ANSWER = {"prompt": "a", "completion": ""}


def test_the_first_bad_record_is_told_with_the_number_of_others(settings):
    write(Path(settings.path), GOOD, NO_ANSWER, GOOD, *[NO_ANSWER] * 7)
    with pytest.raises(DataError) as error:
        opened(settings)
    said = str(error.value)
    assert said.startswith(f"{settings.path}:2: field 'completion' is empty")
    assert "Of the next 8 records 7 are bad too (4, 5, 6, 7, 8, …)" in said
    assert "data.on_bad_record=skip" in said


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_bad_records_are_skipped_and_listed(settings, tmp_path, kind):
    path = tmp_path / f"data.{kind}"
    records = [GOOD, NO_ANSWER, GOOD]
    lines = "".join(json.dumps(record) + "\n" for record in records) + "{torn\n"
    place, bad = ":", ["2", "4"]
    if kind == "jsonl":
        path.write_text(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps([*records, 3]))
        place = ": item "
    elif kind == "csv":
        path.write_text("prompt,completion\na,b\na,\na,b\na,b,c\n")
        bad = ["3", "5"]
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
        place, bad = ": row ", ["2"]
    skipping = replace(settings, path=str(path), on_bad_record="skip")
    for _ in range(2):  # from the file, then from the cache
        said: list[str] = []
        data, _ = open_data(skipping, tokenizer(), seed=0, log=said.append)
        assert len(data) == 2
        assert len(data.skipped) == len(bad)
        assert all(
            line.startswith(f"{path}{place}{number}:")
            for line, number in zip(data.skipped, bad, strict=True)
        )
        assert any(f"{len(bad)} bad records skipped, the first: {path}" in line for line in said)
    with pytest.raises(DataError, match=r"is empty|cells"):  # another cache: not the skipping one
        opened(replace(skipping, on_bad_record="stop"))


def test_only_bad_records(settings):
    write(Path(settings.path), NO_ANSWER, NO_ANSWER)
    with pytest.raises(DataError, match=r"holds no example: its 2 records are bad"):
        opened(settings, on_bad_record="skip")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a", "completion": "b", "n": ' + "9" * 5000 + "}", r"cannot be read as JSON"),
        ("[" * 100_000, r"cannot be read as JSON|not valid JSON"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", '
            '"x": ' + '{"y": ' * 900 + "1" + "}" * 901 + "]}",
            r"nested too deeply|layout|x.*not in what",
        ),
        ('{"messages": [{"role": "user", "\\ud83d": "a"}]}', r"not valid Unicode"),
    ],
    ids=["a huge number", "deep arrays", "deep objects", "half a surrogate in a key"],
)
def test_any_trouble_with_one_record_names_its_line(settings, line, said):
    good = json.dumps({"messages": [USER, ASSISTANT]})
    Path(settings.path).write_text(good + "\n" + line + "\n")
    with pytest.raises(DataError, match=rf"train\.jsonl:2: .*({said})"):
        opened(settings)


def test_a_record_that_the_tokenizer_refuses_names_its_line(settings):
    from adaptsft.model.tiny import char_tokenizer

    write(Path(settings.path), GOOD, {"prompt": "a", "completion": "é"})
    with pytest.raises(DataError, match=r"train\.jsonl:2: the tokenizer refuses its text"):
        opened(settings, char_tokenizer("ab\n"))


def test_compressed_files_of_a_folder_are_read_too(tmp_path, settings):
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "a.jsonl", GOOD)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert len(opened(settings, path=str(folder))) == 2
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-9])
    with pytest.raises(DataError, match=r"b\.jsonl\.gz: cannot be decompressed"):
        opened(settings, path=str(folder))


def test_a_run_lists_what_it_skipped(tmp_path, tiny_model):
    config = small_config(tmp_path, tiny_model(), train__max_steps=1, data__on_bad_record="skip")
    with open(config.data.path, "a") as file:
        file.write("{torn\n")
    train(config)
    listed = (Path(config.run_dir) / "skipped_records.txt").read_text()
    assert listed.startswith(f"{config.data.path}:21: not valid JSON") and listed.endswith("\n")


def test_each_turn_with_ids_and_many_examples(settings):
    """The examples of a record share its place, and its id is not taken for a repeated one; record
    batches hold a fixed number of examples, whatever that of the records."""
    talk = [USER, ASSISTANT] * 3
    write(Path(settings.path), *({"messages": talk, "id": i} for i in range(700)))
    data = opened(settings, loss_on="each_turn", fields={"id": "id"})
    assert len(data) == 2100
    assert [data.place(i)[1] for i in (0, 2, 3, 2099)] == [1, 1, 2, 700]
    tok = tokenizer()
    assert [learned(data, tok, i) for i in (0, 1500)] == ["So.<|im_end|>"] * 2
    assert data.lengths[0] < data.lengths[1] < data.lengths[2]


def test_a_bad_first_record_is_skipped_too(settings):
    write(Path(settings.path), {"foo": 1}, {"id": 7} | NO_ANSWER, {"id": 7} | GOOD)
    data = opened(settings, on_bad_record="skip", fields={"id": "id"})
    assert [data.place(i)[1] for i in range(len(data))] == [3]
    assert [line.split(":")[1] for line in data.skipped] == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"prompt": "a", "prompt": "b", "completion": "c"}\n', r":1: .*the key 'prompt' twice"),
        (gzip.compress(b'{"prompt": "a"}\n'), r"compressed by gzip; add \.gz to its name"),
        (
            b'[\n  {"role": "user", "content": "a"},\n  {"role": "assistant", "content": "b"}\n]\n',
            r"item 1: .*messages of one conversation",
        ),
    ],
    ids=["a key twice", "gzip", "one conversation"],
)
def test_files_that_are_not_what_they_seem(settings, content, said):
    Path(settings.path).write_bytes(content)
    with pytest.raises(DataError, match=said):
        opened(settings)


def test_a_long_conversation_on_a_line_of_its_own(settings):
    talk = [USER, {"role": "assistant", "content": "a" * 2_000_000}]
    Path(settings.path).write_text(f"{json.dumps(talk)}\n{json.dumps([USER, ASSISTANT])}\n")
    assert len(opened(settings)) == 1  # the other is longer than data.max_length


def test_columns_of_a_table_that_are_called_the_same(settings, tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,prompt\na,b,c\n")
    with pytest.raises(DataError, match=r"a\.csv:1: two columns are called 'prompt'"):
        opened(settings, path=str(tmp_path / "a.csv"))


def test_reserved_variables_of_a_template(settings):
    write(Path(settings.path), GOOD | {"chat_template_kwargs": {"messages": []}})
    with pytest.raises(DataError, match=r"'messages' is no variable .*data\.template_kwargs"):
        opened(settings)
