"""A diagnosis that the tests of this folder share."""

import json
from pathlib import Path

import pytest

from adaptsft.diagnose import diagnose
from adaptsft.train import train
from tests.analysis.diagnosed import ALL, config_of
from tests.runs import small_config, write_data


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tiny_model) -> Path:
    """Two sources, a model that has learned the first a little (`known`), and its diagnosis, in the
    run folder."""
    folder = tmp_path_factory.mktemp("diagnose")
    write_data(folder / "data.jsonl", 20)
    write_data(folder / "sums.jsonl", 24, seed=1)
    lines = [{"prompt": f"{i}?", "completion": "Add 3, 4 " * (1 + i % 3)} for i in range(9)]
    (folder / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train(
        small_config(folder, tiny_model("llama"), "known", train__max_steps=25, checkpoint__every=0)
    )
    diagnose(ALL, config_of(folder))
    return folder
