"""Ids that repeat: an error where data.fields.id is mapped, else one line."""

import re
from pathlib import Path

import numpy as np
import pytest

from adaptsft.config.schema import SourceConfig
from adaptsft.data.encoding import Encoder
from adaptsft.data.ids import first_repeated
from adaptsft.data.tokenized import open_data
from adaptsft.errors import DataError
from tests.data.records import opened, quiet, tokenizer, write

MAPPED = {"id": "id"}


def with_ids(folder: Path, *files: list) -> list[str]:
    """A file per list, of records with these ids; None: a record without one."""
    folder.mkdir(exist_ok=True)
    records = [
        [
            {"prompt": f"{number}", "completion": "b"} | ({} if name is None else {"id": name})
            for name in names
        ]
        for number, names in enumerate(files)
    ]
    return [write(folder / f"{number}.jsonl", *records[number]) for number in range(len(files))]


def lines_of(config, verify: bool = True) -> tuple[int, list[str]]:
    """Examples, and what is logged but for the summary."""
    lines: list[str] = []
    data, _ = open_data(config, tokenizer(), seed=0, log=lines.append, verify=verify)
    return len(data), [line for line in lines if not line.startswith("train: ")]


def test_a_mapped_id_of_another_file_is_an_error(tmp_path, settings, monkeypatch):
    """Also where both files are in the cache, and in held-out files. Of the ranks of a run, one
    compares."""
    settings.path, settings.fields = str(tmp_path / "shards"), MAPPED
    paths = with_ids(tmp_path / "shards", ["x", None, "a-7"], [None, 7], ["7", "a-8", None, "a-7"])
    message = re.escape(
        f"{paths[2]}:4: the id 'a-7' is that of {paths[0]}:3 too; remove one of the two, or set "
        "data.fields.id=none if ids"
    )
    for _ in range(2):
        with pytest.raises(DataError, match=f"^{message}"):
            opened(settings)
        monkeypatch.setattr(Encoder, "encode", None)  # nothing is tokenised again
    assert len(open_data(settings, tokenizer(), seed=0, log=quiet, verify=False)[0]) == 9
    monkeypatch.undo()
    assert len(opened(settings, fields={"id": "none"})) == 9
    good = write(tmp_path / "good.jsonl", {"prompt": "a", "completion": "b", "id": "a-7"})
    with pytest.raises(DataError, match=f"^{message}"):
        opened(settings, path=good, validation_path=f"{settings.path}/*")


def test_mapped_ids_that_begin_anew_in_each_file_are_found_in_the_second(tmp_path, settings):
    settings.path = str(tmp_path / "shards")
    paths = with_ids(tmp_path / "shards", *[[0, 1, 2]] * 5)
    with pytest.raises(DataError, match=f"^{paths[1]}:1: the id 0 is that of {paths[0]}:1 too"):
        opened(settings, fields=MAPPED)
    made = [path for path in Path(settings.cache_dir).iterdir() if path.name != "hashes"]
    assert len(made) == 2, "the others are not tokenised first"
    assert len(opened(settings, fields={"id": "none"})) == 15


def test_a_mapped_id_twice_in_a_file_is_an_error_before_anything_is_kept(settings):
    write(Path(settings.path), *[{"key": 7, "prompt": "a", "completion": "b"}] * 2)
    with pytest.raises(DataError) as error:
        opened(settings, fields={"id": "key"})
    expected = f"{settings.path}:2: the id 7 is that of {settings.path}:1 too"
    assert str(error.value).startswith(expected) and "data.fields.id" in str(error.value)
    assert list(Path(settings.cache_dir).iterdir()) == []
    assert len(opened(settings)) == 2


def test_ids_are_those_of_a_source(tmp_path, settings):
    paths = with_ids(tmp_path / "shards", ["a"], ["a"])
    for fields in ({}, MAPPED):
        settings.sources = [SourceConfig(path=path, fields=fields) for path in paths]
        settings.path = ""
        assert lines_of(settings) == (2, [])


def test_mapped_ids_decide_where_their_digests_agree(tmp_path, settings, monkeypatch):
    """All digests are the same here: an id that is another is no error, one that is the same is
    found."""
    monkeypatch.setattr("adaptsft.data.reading.digest", lambda value: 5)
    settings.path, settings.fields = str(tmp_path / "shards"), MAPPED
    with_ids(tmp_path / "shards", ["a", "b"], ["c"], ["d"])
    assert len(opened(settings)) == 4
    paths = with_ids(tmp_path / "shards", ["a", "b"], ["c"], ["a"])
    with pytest.raises(DataError, match=f"^{paths[2]}:1: the id 'a' is that of {paths[0]}:1 too"):
        opened(settings)


def test_repeated_ids_are_allowed_where_asked(settings):
    write(Path(settings.path), *[{"id": 7, "prompt": "a", "completion": "b"}] * 2)
    settings.fields = {"id": "none"}
    assert lines_of(settings) == (2, [])


def test_ids_that_are_not_mapped_are_one_line(tmp_path, settings):
    """In one file and in two, in the cache or not; by one rank."""
    settings.path = str(tmp_path / "shards")
    paths = with_ids(tmp_path / "shards", ["x", "y", "y"], [None, 7, None], ["7", "x", "x"])
    for _ in range(2):
        count, lines = lines_of(settings)
        assert count == 9
        (line,) = lines
        assert line.startswith("warning: shards: 3 records have the id of an earlier one")
        assert f"the first {paths[0]}:3, with that of {paths[0]}:2" in line
        assert "data.fields.id" in line
    assert lines_of(settings, verify=False) == (9, [])
    with_ids(tmp_path / "shards", ["x", "y"], [None, 7], ["7", "y"])
    (line,) = lines_of(settings)[1]
    assert f"1 records have the id of an earlier one, the first {paths[2]}:2, with that of " in line
    assert f"{paths[0]}:2: was a file added twice?" in line


def test_the_first_repeated_digest():
    def files(*digests):
        return [np.array(each, dtype=np.int64) for each in digests]

    assert first_repeated(files([1, 2], [3, 0, 0])) is None
    assert first_repeated(files([0, 0], [0])) is None
    assert first_repeated(files([5, 1, 2], [], [3, 2, 1, 1])) == ((0, 2), (2, 1), 3)
