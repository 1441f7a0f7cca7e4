"""The length limit, several sources and held-out data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adaptsft.config.schema import SourceConfig
from adaptsft.data.tokenized import open_data
from adaptsft.errors import ConfigError, DataError
from tests.data.records import learned, opened, quiet, shards, tokenizer, write


def test_errors_name_the_file_of_many(tmp_path, settings):
    tok = tokenizer(None)
    settings.path = str(tmp_path / "shards")
    paths = shards(tmp_path / "shards")
    Path(paths[1]).write_text('{"prompt": "a", "completion": ""}\n')
    with pytest.raises(DataError) as error:
        opened(settings, tok)
    assert str(error.value).startswith(f"{paths[1]}:1: field 'completion' is empty")
    write(
        Path(paths[1]),
        {"prompt": "a", "completion": "fine"},
        {"prompt": "a", "completion": "too long for this"},
    )
    too_long = r"the example has 20 tokens, more than data\.max_length=10 \(so have 1"
    with pytest.raises(DataError, match=rf"part-1\.jsonl:2: {too_long}"):
        opened(settings, tok, max_length=10, overlong="error")
    dropped = opened(settings, tok, max_length=10)
    assert (len(dropped), dropped.dropped) == (6, [1])
    assert [dropped.where(i) for i in (3, 4)] == [f"{paths[1]}:1", f"{paths[2]}:1"]
    cut = opened(settings, tok, max_length=10, overlong="truncate")
    assert (len(cut), cut.truncated, cut.dropped) == (7, [1], [0])
    assert learned(cut, tok, 4) == "too long"
    assert (cut.lengths[4], cut.target_tokens[4]) == (10, 8)


def test_sources_of_many_files(tmp_path, settings):
    """The limit of length is counted for each source, and each finds its own files."""
    tok = tokenizer()
    shards(tmp_path / "a")
    other = write(
        tmp_path / "b.jsonl",
        {"prompt": "a", "completion": "b" * 99},
        {"prompt": "a", "completion": "b"},
    )
    sources = [
        SourceConfig(path=other),
        SourceConfig(path=str(tmp_path / "a")),
        SourceConfig(name="again", path=str(tmp_path / "a")),
    ]
    data = opened(settings, tok, path="", sources=sources, max_length=100)
    assert data.names == ["b", "a", "again"]
    assert data.source.tolist() == [0] + [1] * 6 + [2] * 6
    assert (data.dropped, data.truncated) == ([1, 0, 0], [0, 0, 0])
    assert [learned(data, tok, i) for i in range(13)] == ["b<|im_end|>"] + [
        f"{i:02}<|im_end|>" for i in range(6)
    ] * 2
    with pytest.raises(
        DataError, match=r"b\.jsonl: no example is left: all 2 .*data\.max_length=20"
    ):
        opened(settings, tok, path="", sources=sources, max_length=20)


def test_overlong_examples(settings):
    tok = tokenizer(None)
    settings.max_length = 8
    write(
        Path(settings.path),
        {"prompt": "abc", "completion": "def"},  # 3 + newline + 3 + end = 8 tokens
        {"prompt": "abc", "completion": "defghi"},
        {"prompt": "abcdefghi", "completion": "j"},  # its answer lies beyond the limit
    )
    lines: list[str] = []
    data, _ = open_data(settings, tok, seed=0, log=lines.append)
    assert data.lengths.tolist() == [8]
    expected = "train: 1 examples, 8 tokens, 4 target tokens, 2 examples dropped as too long"
    assert expected in lines[-1]
    data, _ = open_data(replace(settings, overlong="truncate"), tok, seed=0, log=lines.append)
    assert data.lengths.tolist() == [8, 8]
    assert data.target_tokens.tolist() == [4, 4]
    assert learned(data, tok, 1) == "defg"
    expected = "2 examples, 16 tokens, 8 target tokens, 1 examples dropped as too long, 1 examples "
    assert expected + "truncated" in lines[-1]
    too_long = r"the example has 11 tokens, more than data\.max_length=8 \(so have 2"
    with pytest.raises(DataError, match=rf"train\.jsonl:2: {too_long}"):
        opened(settings, tok, overlong="error")
    with pytest.raises(DataError, match=r"no example is left: all 3 .*data\.max_length=7"):
        opened(settings, tok, max_length=7)


def test_several_sources(tmp_path, settings):
    tok = tokenizer()
    first = write(
        tmp_path / "first.jsonl", *[{"prompt": "a", "completion": str(i)} for i in range(3)]
    )
    second = write(tmp_path / "second.jsonl", *[{"q": "b", "a": str(i)} for i in range(2)])
    sources = [
        SourceConfig(path=first, weight=2.0),
        SourceConfig(name="quiz", path=second, fields={"prompt": "q", "completion": "a"}),
    ]
    lines: list[str] = []
    data, _ = open_data(replace(settings, path="", sources=sources), tok, seed=0, log=lines.append)
    assert data.names == ["first", "quiz"]
    assert data.weights == [2.0, 1.0]
    assert data.source.tolist() == [0, 0, 0, 1, 1]
    assert [learned(data, tok, i) for i in range(5)] == [f"{i}<|im_end|>" for i in (0, 1, 2, 0, 1)]
    assert data.where(4) == f"{second}:2"
    assert len(lines) == 2
    assert lines[0].endswith("weight 2")
    targets = data.target_tokens.tolist()
    per_epoch = [2.0 * sum(targets[:3]), 1.0 * sum(targets[3:])]
    assert data.target_tokens_per_epoch().tolist() == per_epoch
    sources[1].name = "first"
    with pytest.raises(ConfigError, match=r"data\.sources\[1\]\.name=first"):
        opened(settings, tok, path="", sources=sources)


def test_held_out_examples(tmp_path, settings):
    tok = tokenizer()
    write(Path(settings.path), *[{"prompt": "a", "completion": f"{i:02}"} for i in range(20)])
    whole = opened(settings, tok)

    def split(seed: int):
        config = replace(settings, validation_examples=5)
        both = open_data(config, tok, seed=seed, log=quiet)
        assert both[1] is not None
        return [[learned(data, tok, i) for i in range(len(data))] for data in both], both[0]

    (train, held_out), kept = split(seed=1)
    assert len(held_out) == 5
    assert sorted(train + held_out) == [learned(whole, tok, i) for i in range(20)]
    assert split(seed=1)[0] == [train, held_out]
    assert split(seed=2)[0][1] != held_out
    assert kept.fingerprint != whole.fingerprint
    assert kept.fingerprint == split(seed=1)[1].fingerprint
    with pytest.raises(ConfigError, match=r"data\.validation_examples=20: there are only 20"):
        opened(settings, tok, validation_examples=20)
    other = write(tmp_path / "held.jsonl", {"prompt": "a", "completion": "other"})
    _, held = open_data(replace(settings, validation_path=other), tok, seed=0, log=quiet)
    assert held is not None
    assert [learned(held, tok, 0)] == ["other<|im_end|>"]
    assert held.names == ["held"]


def test_arrays(settings):
    write(Path(settings.path), {"prompt": "a", "completion": "b"})
    data = opened(settings)
    ids, mask = data.example(0)
    assert (ids.dtype, mask.dtype) == (np.int64, np.bool_)
    assert (data.lengths.dtype, data.target_tokens.dtype) == (np.int32, np.int32)
    assert (data.source.dtype, data.number.dtype) == (np.int16, np.int64)
