"""Which files a path, a folder or a pattern names, and those that are missing."""

import numpy as np
import pytest

from adaptsft.errors import DataError
from tests.data.records import learned, opened, shards, tokenizer, write


def test_a_pattern_or_folder_is_one_source(tmp_path, settings):
    tok = tokenizer()
    paths = shards(tmp_path / "shards")
    (tmp_path / "shards" / "README.md").write_text("about")
    for path, name in (
        ("shards", "shards"),
        ("shards/*.jsonl", "shards"),
        ("shards/part-*.jsonl", "part"),
        ("**/part-[0-9].jsonl", "part"),
    ):
        data = opened(settings, tok, path=str(tmp_path / path))
        assert data.names == [name]
        assert [learned(data, tok, i) for i in range(len(data))] == [
            f"{i:02}<|im_end|>" for i in range(6)
        ]
        assert [data.where(i) for i in (0, 2, 3, 4, 5)] == [
            f"{paths[0]}:1",
            f"{paths[0]}:3",
            f"{paths[1]}:1",
            f"{paths[2]}:1",
            f"{paths[2]}:2",
        ]
        assert set(data.source.tolist()) == {0}
    # some of its examples still find their files
    two = data.take(np.array([5, 3]))
    assert [(learned(two, tok, i), two.where(i)) for i in (0, 1)] == [
        ("05<|im_end|>", f"{paths[2]}:2"),
        ("03<|im_end|>", f"{paths[1]}:1"),
    ]
    with pytest.raises(DataError, match=r"none-\*\.jsonl: no file matches"):
        opened(settings, tok, path=str(tmp_path / "none-*.jsonl"))
    with pytest.raises(DataError, match=r"README\.md: unknown extension"):
        opened(settings, tok, path=str(tmp_path / "shards" / "*"))
    # a file that is there is no pattern
    odd = write(tmp_path / "a[1]*.jsonl", {"prompt": "a", "completion": "odd"})
    data = opened(settings, tok, path=odd)
    assert (data.names, data.where(0)) == (["a[1]*"], f"{odd}:1")


def test_missing_file_names_the_nearest(tmp_path, settings):
    write(tmp_path / "training.jsonl", {"prompt": "a", "completion": "b"})
    with pytest.raises(
        DataError, match=r"trainin\.jsonl: no such file; did you mean .*training\.jsonl"
    ):
        opened(settings, path=str(tmp_path / "trainin.jsonl"))
    with pytest.raises(DataError, match=r"no such file; there is no folder"):
        opened(settings, path=str(tmp_path / "none" / "a.jsonl"))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"a\.txt: unknown extension '\.txt'; .*\.jsonl"):
        opened(settings, path=str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="no-such-name/at-all: neither a file here nor a data set"):
        opened(settings, path="no-such-name/at-all")
