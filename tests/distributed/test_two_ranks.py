"""The same tokens give the same step on one rank or two, in one micro-batch or many; checkpoints
load on either. Real gloo ranks."""

import json
from pathlib import Path

import pytest
import torch

from adaptsft.config.load import read_config, save_config
from adaptsft.errors import DataError
from adaptsft.train import main, train
from tests.conftest import REPO
from tests.distributed.two_ranks import on_two_ranks, train_all
from tests.runs import loaded_state, metrics_of, saved_state, small_config, write_data
from tests.training.test_normalizer import (
    BF16,
    KEPT,
    LOWER,
    SUMMED,
    assert_gradient,
    reference_gradient,
)

# betas[0] = 0: the first moment after step 1 is the gradient itself
GRADIENT = {
    "train__betas": [0.0, 0.95],
    "train__clip_norm": 0.0,
    "train__warmup_ratio": 0.0,
    "train__global_batch_size": 4,
    "train__max_steps": 2,
    "checkpoint__every": 1,
}
CASES = {
    "untied": {
        "arch": "llama",
        "tied": False,
        "objective__name": "alpha",
        "controller__name": "linear",
    },
    "tied": {"arch": "qwen2", "tied": True, "objective__name": "talr", "data__packing": False},
    "gemma": {
        "arch": "gemma3",
        "objective__name": "threshold",
        "objective__lower": 0.003,
        "objective__normalizer": "kept",
        "train__activation_checkpointing": "full",
    },
    # the router loss of a step, and padding, do not depend on the split either
    "experts": {
        "arch": "qwen3_moe",
        "train__router_aux_loss": 0.5,
        "train__activation_checkpointing": "full",
    },
    # the second rank has nothing to learn
    "idle": {
        "arch": "llama",
        "tied": False,
        "train__global_batch_size": 1,
        "controller__name": "auto",
    },
    "replicated": {
        "arch": "llama",
        "tied": False,
        "train__replicas": 2,
        "train__reduce_every_micro_batch": True,  # over replicas, after the last one only
        "controller__name": "auto",
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model) -> Path:
    """All configurations, trained on one rank here and on two ranks in two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    write_data(folder / "data.jsonl", 20)
    (folder / "two").mkdir()

    def config(name: str, case: dict, **more):
        options = {key: case[key] for key in ("arch", "tied") if key in case}
        keys = {key: value for key, value in case.items() if key not in options}
        return small_config(folder, tiny_model(**options), name, **GRADIENT | keys | more)

    def save(name: str, case: dict, **more) -> None:
        save_config(config(f"{name}-2ranks", case, **more), folder / "two" / f"{name}.yaml")

    for name, case in CASES.items():
        one = {} if name != "replicated" else {"train__replicas": 1}
        for micro in (4, 1):
            train(config(f"{name}-1x{micro}", case, train__micro_batch_size=micro, **one))
        save(name, case)
    # one micro-batch per rank and step, to compare the communication of accumulation with
    save("whole", CASES["untied"], train__micro_batch_size=4, data__max_length=512)
    strict = {"arch": "llama", "tied": False, "train__max_steps": 1}
    strict |= SUMMED | KEPT | {"train__global_batch_size": 8, "train__micro_batch_size": 2}
    save("strict", strict)
    save("strict_bf16", strict | BF16)
    checkpoint = folder / "tied-1x1" / "checkpoints" / "step_00000002"
    job = {"config": "tied", "checkpoint": str(checkpoint), "counted": ["untied", "whole"]}
    (folder / "two" / "load.json").write_text(json.dumps(job))
    codes, printed = on_two_ranks(train_all, folder / "two", log=folder / "log")
    assert codes == [0, 0], printed[-4000:]
    return folder


def first_state(runs: Path, name: str) -> dict[str, torch.Tensor]:
    return saved_state(runs / name / "checkpoints" / "step_00000001")


@pytest.mark.parametrize("name", CASES)
def test_any_split_of_the_same_tokens_is_the_same_step(runs, name):
    whole = first_state(runs, f"{name}-1x4")
    gradients = [key for key in whole if key.endswith("exp_avg")]
    assert len(gradients) > 10
    largest = max(float(whole[key].abs().max()) for key in gradients)
    for other in (f"{name}-1x1", f"{name}-2ranks"):
        state = first_state(runs, other)
        assert state.keys() == whole.keys()
        for key in gradients:
            assert (state[key] - whole[key]).abs().max() <= 1e-6 * max(largest, 1.0), (other, key)
        for key in (key for key in whole if key.startswith("tensors/")):
            torch.testing.assert_close(state[key], whole[key], rtol=1e-6, atol=0)
        ours, theirs = (
            metrics_of(read_config(runs / run / "config.yaml"))[0] for run in (other, f"{name}-1x4")
        )
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-6), (other, key)


def test_a_checkpoint_of_one_rank_loads_on_two_and_the_reverse(runs):
    written_by_one = saved_state(runs / "tied-1x1" / "checkpoints" / "step_00000002")
    on_two = torch.load(runs / "two" / "loaded.pt")
    by_two = runs / "tied-2ranks" / "checkpoints" / "step_00000002"
    on_one = loaded_state(read_config(runs / "tied-1x1" / "config.yaml"), by_two)
    for written, loaded in ((written_by_one, on_two), (saved_state(by_two), on_one)):
        compared = [key for key in loaded if key in written]
        assert len(compared) == len(loaded) and any("exp_avg_sq" in key for key in compared)
        for group in ("model/", "tensors/"):
            assert any(key.startswith(group) for key in compared)
        for key in compared:
            assert torch.equal(loaded[key], written[key]), key


def test_summed_micro_batches_on_two_ranks_are_the_hand_written_formula(runs):
    config = read_config(runs / "strict-2ranks" / "config.yaml")
    expected, target_tokens, kept = reference_gradient(config, 2, LOWER)
    assert len(kept) == 4 and len(set(kept)) > 1
    assert all(0 < k < n for k, n in zip(kept, target_tokens, strict=True))
    assert_gradient(runs / "strict-2ranks", expected)


def test_bf16_masters_on_two_ranks_have_that_gradient_to_bf16s_accuracy(runs):
    rounded, exact = first_state(runs, "strict_bf16-2ranks"), first_state(runs, "strict-2ranks")
    gradients = [key for key in exact if key.endswith("exp_avg")]
    largest = max(float(exact[key].abs().max()) for key in gradients)
    for key in gradients:
        assert rounded[key].dtype == torch.bfloat16
        assert (rounded[key].float() - exact[key]).abs().max() <= 0.02 * largest, key


def test_accumulation_costs_no_extra_reduction(runs):
    reductions = json.loads((runs / "two" / "reductions.json").read_text())
    assert reductions["untied"] == reductions["whole"] > 0


def test_an_error_ends_all_ranks_with_its_message_and_leaves_nothing(tmp_path, tiny_model):
    data = tmp_path / "bad.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n')
    arguments = {
        "run_dir": tmp_path / "run",
        "model.path": tiny_model("llama"),
        "data.path": data,
        "data.cache_dir": tmp_path / "cache",
    }
    command = [f"{key}={value}" for key, value in arguments.items()]
    codes, printed = on_two_ranks(main, command, log=tmp_path / "log")
    assert codes == [DataError.exit_code] * 2
    assert f"{data}:2" in printed
    assert printed.count("adaptsft.train: DataError") == 1
    assert str(REPO / "adaptsft") not in printed, "a message, not a traceback of ours"
    assert not (tmp_path / "run").exists()
