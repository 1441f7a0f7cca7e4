"""Tokens are made once, found again, and checked."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from adaptsft.data.tokenized import open_data
from adaptsft.errors import DataError
from adaptsft.model.tiny import CHATML
from tests.data.records import learned, opened, quiet, shards, tokenizer, write


def test_second_open_reads_the_cache(settings):
    tok = tokenizer()
    # more than one record batch
    write(Path(settings.path), *[{"prompt": "a", "completion": str(i)} for i in range(2500)])
    first = opened(settings, tok)
    (folder,) = (path for path in Path(settings.cache_dir).iterdir() if path.name != "hashes")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    # what other code does with a tokenizer leaves traces in it, and must not cost the cache
    tok(["a", "bcd"], padding=True, truncation=True, max_length=4)
    second, _ = open_data(replace(settings, max_length=30), tok, seed=1, log=quiet)
    # beside it, where the files have been there for some time, their hashes
    assert {path.name for path in Path(settings.cache_dir).iterdir()} - {"hashes"} == {folder.name}
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for i in (0, 999, 1000, 2499):
        assert learned(second, tok, i) == f"{i}<|im_end|>"
    assert first.fingerprint == second.fingerprint
    assert len(datasets.Dataset.from_file(str(folder / "tokens.arrow"))) == 2500


@pytest.mark.parametrize(
    "change", ["data", "tokenizer", "chat template", "loss_on", "fields", "prompt template"]
)
def test_what_changes_tokens_is_tokenised_again(settings, change):
    write(Path(settings.path), {"prompt": "a", "completion": "b", "other": "c"})
    template = None if change == "prompt template" else CHATML
    opened(settings, tokenizer(template))
    tok, changed = tokenizer(template), settings
    if change == "data":
        write(Path(settings.path), {"prompt": "a", "completion": "B", "other": "c"})
    elif change == "tokenizer":
        tok.add_tokens(["ab"])
    elif change == "chat template":
        tok.chat_template = "Talk:" + CHATML
    elif change == "loss_on":
        changed = replace(settings, loss_on="all")
    elif change == "fields":
        changed = replace(settings, fields={"completion": "other"})
    else:
        changed = replace(settings, prompt_template="Q: {prompt}")
    opened(changed, tok)
    assert len(list(Path(settings.cache_dir).iterdir())) == 2


def test_a_new_file_is_the_only_one_tokenised(tmp_path, settings):
    tok = tokenizer()
    settings.path = str(tmp_path / "shards" / "*.jsonl")
    shards(tmp_path / "shards")
    first = opened(settings, tok)
    before = {path.name: path.stat().st_mtime_ns for path in Path(settings.cache_dir).iterdir()}
    added = write(tmp_path / "shards" / "part-1b.jsonl", {"prompt": "a", "completion": "new"})
    second = opened(settings, tok)
    after = {path.name: path.stat().st_mtime_ns for path in Path(settings.cache_dir).iterdir()}
    assert len(after) == 4
    assert before.items() < after.items()
    assert [learned(second, tok, i) for i in (3, 4, 5)] == [
        f"{text}<|im_end|>" for text in ("03", "new", "04")
    ]
    assert second.where(4) == f"{added}:1"
    assert first.fingerprint != second.fingerprint


def test_two_at_once_leave_one_cache(settings):
    tok = tokenizer()
    write(Path(settings.path), *[{"prompt": "a", "completion": str(i)} for i in range(1500)])
    with ThreadPoolExecutor(4) as threads:
        opening = [threads.submit(opened, settings, tok) for _ in range(4)]
    assert [learned(data.result(), tok, 1499) for data in opening] == ["1499<|im_end|>"] * 4
    assert len(list(Path(settings.cache_dir).iterdir())) == 1


def test_what_a_killed_process_left_is_ignored(settings):
    tok = tokenizer()
    write(Path(settings.path), {"prompt": "a", "completion": "b"})
    opened(settings, tok)
    folder = next(Path(settings.cache_dir).iterdir())
    os.rename(folder, f"{folder}.0123")  # as if killed before the rename
    data = opened(settings, tok)
    assert learned(data, tok) == "b<|im_end|>"


@pytest.mark.parametrize("name", ["tokens.arrow", "sizes.npy"])
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.8])
def test_damaged_cache_is_an_error_that_says_what_to_delete(settings, name, keep):
    tok = tokenizer()
    write(Path(settings.path), *[{"prompt": "a", "completion": str(i)} for i in range(1100)])
    opened(settings, tok)
    folder = next(Path(settings.cache_dir).iterdir())
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=rf"{folder}: .*delete this folder"):
        opened(settings, tok)


@pytest.mark.parametrize("name", ["tokens.arrow", "sizes.npy"])
def test_a_flipped_bit_in_the_cache_is_noticed(settings, name):
    tok = tokenizer()
    write(Path(settings.path), *[{"prompt": "a", "completion": str(i)} for i in range(1100)])
    opened(settings, tok)
    file = next(Path(settings.cache_dir).iterdir()) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"sha256.*delete this folder"):
        opened(settings, tok)


def test_progress_has_a_share_and_an_eta(settings, monkeypatch):
    monkeypatch.setattr("adaptsft.data.cache.PROGRESS_EVERY", 0.0)
    write(Path(settings.path), *[{"prompt": "a", "completion": str(i)} for i in range(2000)])
    lines: list[str] = []
    open_data(settings, tokenizer(), seed=0, log=lines.append)
    assert lines[0].startswith("tokenising train: 1,000 examples, ")
    assert "ETA" in lines[0]
    assert "100%" in lines[1]


def test_a_cache_that_cannot_be_written(tmp_path, settings):
    write(Path(settings.path), {"prompt": "a", "completion": "b"})
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir="):
        opened(settings, cache_dir=str(tmp_path / "file"))
