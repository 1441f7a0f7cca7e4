"""train.reshard=never is train.reshard=always to the bit, and gathers less. Real gloo ranks."""

import json
import signal
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adaptsft.config.load import read_config, save_config
from adaptsft.distributed.ranks import rank
from adaptsft.train import train
from tests.distributed.two_ranks import on_two_ranks
from tests.runs import metrics_of, run_in_process, saved_state, small_config, write_data
from tests.training.test_resume import micro_batches

POLICIES = ("always", "never")
# several micro-batches, clipping that is active, evaluations before, within and after the run
SHARED = {
    "train__max_steps": 2,
    "train__global_batch_size": 10,
    "train__clip_norm": 0.5,
    "data__max_length": 96,
    "data__validation_examples": 3,
    "eval__every": 1,
    "checkpoint__every": 2,
}
CASES = {
    "tied": {"arch": "qwen2", "tied": True, "controller__name": "auto"},
    "adapters": {
        "arch": "llama",
        "tied": False,
        "model__lora__rank": 4,
        "model__compute_dtype": "bf16",
    },
    "replicas": {
        "arch": "gemma3",
        "train__replicas": 2,
        "train__reduce_every_micro_batch": True,
        "train__activation_checkpointing": "full",
        "model__freeze": ["layers\\.0\\."],
    },
}


class Gatherings(TorchDispatchMode):
    """Counts the groups of weights that are gathered."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "split_with_sizes_copy" in str(func)
        return func(*args, **(kwargs or {}))


def train_each(folder: Path) -> None:
    gatherings = {}
    for file in sorted(folder.glob("*.yaml")):
        with Gatherings() as counter:
            train(read_config(file))
        gatherings[file.stem] = counter.count
    if rank() == 0:
        (folder / "gatherings.json").write_text(json.dumps(gatherings))


def same(runs: Path, one: str, other: str) -> bool:
    ours, theirs = (read_config(runs / name / "config.yaml") for name in (one, other))
    assert metrics_of(ours) == metrics_of(theirs) and len(metrics_of(ours)) == 2
    assert any(row["grad_norm"] > ours.train.clip_norm for row in metrics_of(ours))
    (evals, other_evals) = ((runs / name / "eval.jsonl").read_text() for name in (one, other))
    assert evals == other_evals and evals.count("\n") == 3
    state, alike = (
        saved_state(runs / name / "checkpoints" / "step_00000002") for name in (one, other)
    )
    assert state.keys() == alike.keys()
    return all(torch.equal(tensor, alike[key]) for key, tensor in state.items())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model) -> Path:
    folder = tmp_path_factory.mktemp("reshard")
    write_data(folder / "data.jsonl", 20)
    (folder / "two").mkdir()
    for name, case in CASES.items():
        options = {key: case[key] for key in ("arch", "tied") if key in case}
        keys = SHARED | {key: value for key, value in case.items() if key not in options}
        for policy in POLICIES:
            keys |= {"train__reshard": policy}
            two = small_config(folder, tiny_model(**options), f"{name}-{policy}-2ranks", **keys)
            save_config(two, folder / "two" / f"{name}-{policy}.yaml")
    codes, printed = on_two_ranks(train_each, folder / "two", log=folder / "log")
    assert codes == [0, 0], printed[-4000:]
    return folder


@pytest.mark.parametrize("run", ["tied-2ranks", "adapters-2ranks", "replicas-2ranks"])
def test_blocks_that_stay_whole_change_no_bit(runs, run):
    name, ranks = run.split("-")
    assert same(runs, f"{name}-always-{ranks}", f"{name}-never-{ranks}")


def test_they_are_gathered_once_a_step(runs):
    """Of replicas of one rank each there is nothing to gather."""
    gatherings = json.loads((runs / "two" / "gatherings.json").read_text())
    for name in ("tied", "adapters"):
        assert 0 < 2 * gatherings[f"{name}-never"] < gatherings[f"{name}-always"]


def test_killed_with_blocks_whole_and_resumed_without(runs, tiny_model):
    """It dies in the second micro-batch of step 2, and goes on under the other policy."""
    model = tiny_model("qwen2", tied=True)
    keys = SHARED | {"objective__name": "nll_then_killed", "checkpoint__every": 1}
    keys |= {"data__validation_examples": 0, "eval__every": 0}
    whole = small_config(runs, model, "whole", **keys, train__reshard="always")
    train(whole)
    config = small_config(runs, model, "killed", **keys, train__reshard="never")
    assert run_in_process(config, kill_after_calls=micro_batches(config)[0] + 2) == -signal.SIGKILL
    config.train.reshard = "always"
    train(config)
    assert metrics_of(config) == metrics_of(whole)
    ends = (runs / name / "checkpoints" / "step_00000002" for name in ("killed", "whole"))
    killed, never_stopped = map(saved_state, ends)
    assert all(torch.equal(tensor, never_stopped[key]) for key, tensor in killed.items())
