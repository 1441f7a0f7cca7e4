"""train.context_parallel: ranks that share packs take the step that one rank takes with all of their
tokens. Real gloo ranks."""

import json
from pathlib import Path

import pytest
import torch

from adaptsft.config.load import read_config, save_config
from adaptsft.train import train
from tests.distributed.two_ranks import on_two_ranks
from tests.runs import metrics_of, saved_state, small_config, write_data

# two steps, the second with the weights that the first has made; clipping that is active
SHARED = {
    "train__max_steps": 2,
    "train__global_batch_size": 6,
    "train__clip_norm": 0.5,
    "train__warmup_ratio": 0.0,
    "train__lr": 1e-3,
    "train__eps": 1e-4,  # AdamW's first step is the sign of the gradient otherwise, also of noise
    "data__max_length": 160,
    "data__validation_examples": 3,
    "eval__every": 2,
}
CASES = {
    # two query heads a key head; a controller moves the objective by the statistics of sequences
    "packed": {"arch": "llama", "tied": False, "controller__name": "auto"},
    # windows; one key head for all ranks
    "windows": {"arch": "gemma3", "train__activation_checkpointing": "full"},
    "padded": {"arch": "qwen2", "tied": True, "data__packing": False, "objective__name": "talr"},
}


def train_each(folder: Path) -> None:
    for file in sorted(folder.glob("*.yaml")):
        train(read_config(file))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model) -> Path:
    folder = tmp_path_factory.mktemp("context")
    write_data(folder / "data.jsonl", 20)
    for ranks in (2, 4):
        (folder / str(ranks)).mkdir()

    def config(name: str, case: dict, **more):
        options = {key: case[key] for key in ("arch", "tied") if key in case}
        keys = SHARED | {key: value for key, value in case.items() if key not in options}
        return small_config(folder, tiny_model(**options), name, **keys | more)

    for name, case in CASES.items():
        train(config(f"{name}-1", case))
        shared = config(f"{name}-2", case, train__context_parallel=2)
        save_config(shared, folder / "2" / f"{name}.yaml")
    more = {"train__context_parallel": 2, "train__replicas": 2}
    save_config(config("packed-4", CASES["packed"], **more), folder / "4" / "packed.yaml")
    for ranks in (2, 4):
        log = folder / f"log{ranks}"
        codes, printed = on_two_ranks(train_each, folder / str(ranks), log=log, ranks=ranks)
        assert codes == [0] * ranks, printed[-4000:]
    return folder


@pytest.mark.parametrize("run", ["packed-2", "packed-4", "windows-2", "padded-2"])
def test_ranks_that_share_packs_take_the_step_of_one(runs, run):
    one = f"{run[:-2]}-1"
    ours, theirs = (metrics_of(read_config(runs / name / "config.yaml")) for name in (run, one))
    assert len(ours) == 2 and ours[0].keys() == theirs[0].keys()
    for row, alike in zip(ours, theirs, strict=True):
        assert row["grad_norm"] > 0.5
        for key in row:
            assert row[key] == pytest.approx(alike[key], rel=1e-6), key
    ours, theirs = (json.loads((runs / name / "eval.jsonl").read_text().splitlines()[-1]) for name in (run, one))
    assert ours["held_out"] == pytest.approx(theirs["held_out"], rel=1e-6)
    state, alike = (saved_state(runs / name / "checkpoints" / "step_00000002") for name in (run, one))
    assert state.keys() == alike.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, alike[key], rtol=1e-6, atol=1e-6, msg=key)
