import pytest

from adaptsft.config.schema import DataConfig


@pytest.fixture
def settings(tmp_path) -> DataConfig:
    return DataConfig(path=str(tmp_path / "train.jsonl"), cache_dir=str(tmp_path / "cache"))
