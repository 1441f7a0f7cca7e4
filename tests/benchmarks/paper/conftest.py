"""What the tests of the training sets share."""

from pathlib import Path

import pytest

from adaptsft.model.tiny import bpe_tokenizer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # hashes of files are noted in ~/.cache/adaptsft
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe_tokenizer(
        ["What is 1 + 2? The answer is 3.", "Umuntu ngumuntu ngabantu"], 300
    ).save_pretrained(folder)
    return folder
