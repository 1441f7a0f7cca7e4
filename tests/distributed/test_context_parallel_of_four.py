"""train.context_parallel=4 on a stream of weighted turns, continued under other numbers of ranks
to a pack, and compiled. Real gloo ranks."""

import json
from pathlib import Path

import pytest
import torch

from adaptsft.config.load import read_config, save_config
from adaptsft.train import train
from tests.distributed.two_ranks import on_two_ranks
from tests.runs import metrics_of, saved_state, small_config
from tests.training.test_turn_weights import TALKS

pytestmark = pytest.mark.nightly  # four ranks, and Inductor
SETTINGS = {
    "data__stream": 2,
    "data__max_length": 160,
    "train__max_steps": 2,
    "checkpoint__every": 1,
    "train__global_batch_size": 4,
    "train__clip_norm": 0.01,
    "train__eps": 1e-4,  # a first step of AdamW is otherwise the gradient's sign, of noise as well
    "train__lr": 1e-3,
    "log__every": 1,
}
CASES = {
    "four": {"train__context_parallel": 4},
    "two of one": {"train__context_parallel": 2},
}
RESUMED = {"two of one": "one", "one of four": "four"}  # whose first step they continue


def write(folder: Path) -> None:
    folder.mkdir()
    for number in range(4):
        with (folder / f"{number}.jsonl").open("w") as file:
            for place, talk in enumerate(TALKS * 2):
                messages = [
                    {"role": role, "content": f"{content} {number * place}"}
                    | ({} if weight is None else {"weight": weight})
                    for role, content, weight in talk
                ]
                file.write(json.dumps({"messages": messages}) + "\n")


def train_each(folder: Path, names: list[str]) -> None:
    for name in names:
        train(read_config(folder / f"{name}.yaml"))


@pytest.fixture
def one(tmp_path, tiny_model):
    """The run on one rank, and the configuration of others."""
    write(tmp_path / "shards")
    shards = {"data__path": f"file://{tmp_path / 'shards'}/*.jsonl"}

    def config(name: str, **changed):
        model = tiny_model("llama", tied=False)
        return small_config(tmp_path, model, name, **SETTINGS, **shards, **changed)

    train(config("one"))
    return config


def on_ranks(config, folder: Path, ranks: int, runs: dict) -> str:
    """Train them; each must have taken the steps of one rank. What they have printed."""
    for name, changed in runs.items():
        made = config(name, **changed)
        if begun := RESUMED.get(name):
            made.resume = str(folder / begun / "checkpoints" / "step_00000001")
        save_config(made, folder / f"{name}.yaml")
    log = folder / f"log{ranks}"
    codes, printed = on_two_ranks(train_each, folder, list(runs), log=log, ranks=ranks)
    assert codes == [0] * ranks, printed[-4000:]
    expected = saved_state(folder / "one" / "checkpoints" / "step_00000002")
    of_one = metrics_of(read_config(folder / "one" / "config.yaml"))
    for name in runs:
        rows = metrics_of(read_config(folder / f"{name}.yaml"))
        assert len(rows) == (1 if name in RESUMED else 2)
        for row, alike in zip(rows, of_one[-len(rows) :], strict=True):
            for key in row:
                assert row[key] == pytest.approx(alike[key], rel=1e-6), (name, key)
        state = saved_state(folder / name / "checkpoints" / "step_00000002")
        for key, tensor in state.items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-6, atol=1e-6, msg=key)
    return printed


def test_four_ranks_to_a_pack(one, tmp_path):
    on_ranks(one, tmp_path, 4, CASES)
    on_ranks(one, tmp_path, 1, {"one of four": {}})


def test_compiled_layers_exchange_tokens_as_well(one, tmp_path):
    compiled = {"train__context_parallel": 2, "train__compile": True}
    assert "train.compile: on" in on_ranks(one, tmp_path, 2, {"compiled": compiled})
