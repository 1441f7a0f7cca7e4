"""Every kind of source gives the same examples; the hashes of files."""

import hashlib
import json
import os
import time
from pathlib import Path

import datasets
import datasets.config as datasets_config

from adaptsft.data.tokenized import open_data
from adaptsft.model.tiny import CHATML
from tests.data.records import ASSISTANT, USER, learned, opened, quiet, tokenizer, write


def test_every_file_format_gives_the_same_examples(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf")
    tok = tokenizer()
    records = [
        {"prompt": f"Number {i}?", "completion": text}
        for i, text in enumerate(["72", "NA", 'a "b",\nc', "ß"])
    ]
    table = datasets.Dataset.from_list(records)
    table.to_parquet(tmp_path / "a.parquet")
    table.to_csv(tmp_path / "a.csv")
    write(tmp_path / "a.jsonl", *records)
    (tmp_path / "a.json").write_text("\ufeff " + json.dumps(records, indent=1) + "\n")
    table.to_parquet(str(tmp_path / "folder" / "train.parquet"))
    seen = []
    for name in ("a.jsonl", "a.parquet", "a.csv", "a.json", "folder"):
        data = opened(settings, tok, path=str(tmp_path / name))
        seen.append([data.example(i)[0].tolist() for i in range(len(data))])
        assert data.where(3).startswith(str(tmp_path / name))
        # in the csv: a header, and a cell of two lines
        assert data.where(3)[-1] == ("6" if name == "a.csv" else "4")
        assert data.names == [Path(name).stem]
    assert seen == [seen[0]] * len(seen)
    assert len(seen[0]) == 4
    assert len(list(Path(settings.cache_dir).iterdir())) == 4  # the two tables are the same file


def test_a_folder_with_splits_is_read_by_datasets(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf")
    tok = tokenizer()
    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        write(
            folder / f"{split}.jsonl",
            *[{"prompt": "a", "completion": f"{split} {i}"} for i in range(3)],
        )
    for path in (folder, folder):  # the second time from the cache
        data = opened(settings, tok, path=str(path))
        assert [learned(data, tok, i) for i in range(len(data))] == [
            f"train {i}<|im_end|>" for i in range(3)
        ]
        assert data.where(2) == f"{folder}, train: row 3"
    assert len(list(Path(settings.cache_dir).iterdir())) == 1


def test_messages_in_parquet(tmp_path, settings, monkeypatch):
    """A table fills keys that only some messages have with null, and the template must not see
    those."""
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [
        {"messages": [{**USER, "name": None}, ASSISTANT]},
        {"messages": [{**USER, "name": "Ann"}, ASSISTANT]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    template = CHATML.replace(
        "{{ message['role'] }}", "{{ message['role'] }}{{ '!' if 'name' in message else '' }}"
    )
    tok = tokenizer(template)
    data = opened(settings, tok, path=str(tmp_path / "a.parquet"))
    assert "user!" not in tok.decode(data.example(0)[0])
    assert "user!" in tok.decode(data.example(1)[0])


def test_gsm8k(shared_data, settings):
    tok = tokenizer()
    fields = {"prompt": "question", "completion": "answer"}
    path = shared_data / "math" / "gsm8k_test.jsonl"
    data = opened(settings, tok, path=str(path), fields=fields)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(data) == len(lines)
    for i in (0, 700, len(lines) - 1):
        assert learned(data, tok, i) == lines[i]["answer"] + "<|im_end|>"
        assert data.where(i) == f"{path}:{i + 1}"


def aged(path: str) -> None:
    """Wait until the file has been as it is for longer than `SETTLED`, which the caller has made
    short."""
    while time.time() - os.stat(path).st_ctime < 0.05:
        time.sleep(0.01)


def test_the_hash_of_a_file_is_noted_until_the_file_changes(settings, monkeypatch):
    monkeypatch.setattr("adaptsft.data.sources.SETTLED", 0.03)
    tok = tokenizer()
    path = write(Path(settings.path), {"prompt": "a", "completion": "b"})
    aged(path)
    first = opened(settings, tok)
    (note,) = (Path(settings.cache_dir) / "hashes").iterdir()
    assert note.read_text() == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    with (
        monkeypatch.context() as patch
    ):  # the note is what is read: without it, there is no way to the hash
        patch.delattr("hashlib.file_digest")
        again, _ = open_data(settings, tok, seed=0, log=quiet, verify=False)
    assert again.fingerprint == first.fingerprint
    # the same size and, as `cp -p` or `touch -r` would have it, the same time of modification
    before = os.stat(path)
    write(Path(path), {"prompt": "a", "completion": "c"})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.stat(path).st_size, os.stat(path).st_mtime_ns) == (
        before.st_size,
        before.st_mtime_ns,
    )
    changed = opened(settings, tok)
    assert learned(changed, tok) == "c<|im_end|>"
    # damaged notes are not believed
    aged(path)
    opened(settings, tok)
    for damaged in (Path(settings.cache_dir) / "hashes").iterdir():
        damaged.write_bytes(b"\xff" * 64)
    assert opened(settings, tok).fingerprint == changed.fingerprint


def test_the_hash_of_a_file_just_written_is_not_noted(settings):
    """It could be written again within the granularity of the file system's clock."""
    write(Path(settings.path), {"prompt": "a", "completion": "b"})
    opened(settings)
    assert not (Path(settings.cache_dir) / "hashes").exists()
