"""Data that is not there is refused before anything slow is imported."""

import json
import os
import subprocess
import sys

import pytest

from adaptsft.command_line import first_answer
from adaptsft.config.load import parse_arguments
from adaptsft.data.tokenized import open_data
from adaptsft.errors import DataError
from adaptsft.model.tiny import bpe_tokenizer
from tests.conftest import REPO

# runs the program with each list of arguments, as `python -m` does, in one process
RUN_ALL = """
import contextlib, io, json, runpy, sys
answers = []
for sys.argv[1:] in json.loads(sys.argv[1]):
    printed, code = io.StringIO(), None
    with contextlib.redirect_stderr(printed):
        try:
            runpy.run_module("adaptsft.train", run_name="__main__")
        except SystemExit as error:
            code = error.code
    answers.append((code, printed.getvalue()))
slow = {"torch", "transformers", "datasets", "pyarrow", "fsspec"} & set(sys.modules)
print(json.dumps([answers, sorted(slow)]))
"""


@pytest.fixture
def missing(tmp_path) -> dict[str, list[str]]:
    """Arguments that name data that is not there, by what they name."""
    good = tmp_path / "good.jsonl"
    good.write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").write_text("text")
    validation = [f"data.path={good}"]
    return {
        "file": [f"data.path={tmp_path / 'god.jsonl'}"],
        "relative file": ["data.path=no/such/file.parquet"],
        "folder": [f"data.path={tmp_path / 'none'}"],
        "pattern": [f"data.path={tmp_path / 'part-*.jsonl'}"],
        "source": [f"data.sources=[{{path: {good}}}, {{path: {tmp_path / 'b.csv'}}}]"],
        "empty": [f"data.path={tmp_path / 'empty.jsonl'}"],
        "kind": [f"data.path={tmp_path / 'notes.txt'}"],
        "URL": ["data.path=https://example.org/a.jsonl"],
        "validation file": [*validation, f"data.validation_path={tmp_path / 'v.jsonl'}"],
        "validation pattern": [*validation, f"data.validation_path={tmp_path / 'v-*'}"],
    }


def test_missing_data_is_refused_before_anything_slow_is_imported(missing, tmp_path):
    """With the message of `open_data`."""
    environment = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}"}
    common = [f"run_dir={tmp_path / 'run'}", "model.path=org/name"]
    arguments = json.dumps([common + case for case in missing.values()])
    command = [sys.executable, "-c", RUN_ALL, arguments]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers, slow = json.loads(done.stdout)
    assert slow == []
    for (name, case), (code, printed) in zip(missing.items(), answers, strict=True):
        config = parse_arguments([*case, f"data.cache_dir={tmp_path / 'cache'}"])
        with pytest.raises(DataError) as error:
            open_data(config.data, bpe_tokenizer([], 259), seed=0, log=lambda line: None)
        assert code == DataError.exit_code, name
        assert printed == f"adaptsft.train: DataError: {error.value}\n", name
    assert not (tmp_path / "run").exists()


def test_what_may_be_there_is_left_to_the_program(tmp_path, capsys):
    """A name on the hub, the files behind a URL, a folder with files for splits."""
    folder = tmp_path / "splits"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    for data in (
        ["data.path=org/name"],
        ["data.path=org/name", "data.validation_path=org/name"],
        ["data.path=hf://datasets/org/name/*.parquet", "data.stream=2"],
        [f"data.path={folder}"],
        [f"data.path={folder / 't*.jsonl'}", f"data.validation_path={folder}/test.jsonl"],
        ["data.sources=[{path: org/name}, {path: gsm8k, subset: main}]"],
        [],  # no data at all is refused later, with the other keys
    ):
        assert first_answer(["run_dir=run", "model.path=org/name", *data]) is None, data
    assert capsys.readouterr().err == ""


def test_under_torchrun_the_ranks_look_for_files_together(missing, monkeypatch):
    """A node that lacks a file must not end before the others wait for it."""
    monkeypatch.setenv("RANK", "1")
    assert first_answer(["run_dir=run", "model.path=./none", *missing["file"]]) is None
