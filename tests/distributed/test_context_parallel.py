"""train.context_parallel: ranks that share packs take the step that one rank takes with all tokens.
Real gloo ranks."""

import json
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch

from adaptsft.config.load import read_config, save_config
from adaptsft.config.schema import ModelConfig, TrainConfig
from adaptsft.distributed.ranks import device_mesh, process_group
from adaptsft.errors import ConfigError
from adaptsft.model import build, check
from adaptsft.model.attention import attending
from adaptsft.model.build import build_model
from adaptsft.model.check import batch_of, check_first_batch
from adaptsft.model.fsdp import ShardedModel, evaluating
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.build import NLL
from adaptsft.train import train
from tests.distributed.two_ranks import on_two_ranks
from tests.model.random_models import random_config, write_random_model
from tests.runs import _run, metrics_of, saved_state, small_config, write_data
from tests.training.test_resume import micro_batches

# two steps, the second with the weights that the first has made, and clipping that is active
SHARED = {
    "train__max_steps": 2,
    "train__global_batch_size": 6,
    "train__clip_norm": 0.01,
    "train__warmup_ratio": 0.0,
    "train__lr": 1e-3,
    "train__eps": 1e-4,  # a first step of AdamW is otherwise the gradient's sign, of noise as well
    "data__max_length": 160,
    "data__validation_examples": 3,
    "eval__every": 2,
    "checkpoint__every": 2,
}
CASES = {
    # two query heads a key head; the controller reads statistics, of sequences as well
    "packed": {"arch": "llama", "tied": False, "controller__name": "auto"},
    # windows, one key head for two ranks; layers recomputed
    "windows": {"arch": "gemma3", "train__activation_checkpointing": "full"},
    "padded": {"arch": "qwen2", "tied": True, "data__packing": False, "objective__name": "talr"},
}
LONGROPE = {
    "original_max_position_embeddings": 64,
    "max_position_embeddings": 256,
    "num_key_value_heads": 4,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [float(factor) for factor in range(2, 10)],
        "original_max_position_embeddings": 64,
    },
}


def built(folder: Path, device: torch.device) -> ShardedModel:
    train = TrainConfig(micro_batch_size=1, reshard="always", context_parallel=2)
    found = load_pretrained(ModelConfig(path=str(folder)))
    return build_model(ModelConfig(), train, found, device_mesh(device, 1, 2), device)


def check_models(folder: Path) -> None:
    document = torch.arange(90)
    batch = batch_of([[document]], True, 2)
    with process_group("cpu") as device:
        # of this document the first half alone would have the frequencies of a short one
        model = built(folder / "phi3", device)
        with evaluating(model):
            logp = model.token_loss(batch, NLL, None, 1.0)[1].logp
            with attending(model, "eager"):
                logits = model(input_ids=document[None], use_cache=False).logits[0, :-1]
        own = logits.log_softmax(-1).gather(1, document[1:, None]).squeeze(1)
        torch.testing.assert_close(logp, own, rtol=1e-5, atol=1e-5)

        # a convolution over tokens, some of which another rank has: it is known by its kind, and
        # what is not, the check finds
        with pytest.raises(ConfigError, match="context_parallel: Lfm2ForCausalLM has recurrent"):
            built(folder / "lfm2", device)
        with (
            mock.patch.multiple(build, refuse_mixers=bool, keep_documents_apart=lambda _: False),
            mock.patch.object(check, "mixers", return_value=[]),
            pytest.raises(ConfigError, match=r"another document.*parallel=2 needs"),
        ):
            check_first_batch(built(folder / "lfm2", device), batch, packing=False)


def train_each(folder: Path, kill_after_calls: int = 0) -> None:
    if (folder / "phi3").is_dir():
        check_models(folder)
    for file in sorted(folder.glob("*.yaml")):
        _run(read_config(file), kill_after_calls if file.stem == "z_killed" else 0)


def on_ranks(folder: Path, ranks: int, *arguments: int) -> list[int]:
    log = folder.with_name(f"log.{folder.name}")
    codes, printed = on_two_ranks(train_each, folder, *arguments, log=log, ranks=ranks)
    assert codes == [0] * ranks or arguments, printed[-4000:]
    return codes


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model) -> Path:
    folder = tmp_path_factory.mktemp("context")
    write_data(folder / "data.jsonl", 20)
    for name in ("2", "4", "again"):
        (folder / name).mkdir()
    write_random_model(folder / "2" / "phi3", random_config("phi3", **LONGROPE))
    hybrid = random_config("lfm2", layer_types=["conv", "full_attention"])
    write_random_model(folder / "2" / "lfm2", hybrid)

    def config(name: str, case: dict, **more):
        options = {key: case[key] for key in ("arch", "tied") if key in case}
        keys = SHARED | {key: value for key, value in case.items() if key not in options}
        return small_config(folder, tiny_model(**options), name, **keys | more)

    two = {"train__context_parallel": 2}
    for name, case in CASES.items():
        train(config(f"{name}-1", case))
        save_config(config(f"{name}-2", case, **two), folder / "2" / f"{name}.yaml")
    four = config("packed-4", CASES["packed"], **two, train__replicas=2)
    save_config(four, folder / "4" / "packed.yaml")
    resumed = CASES["packed"] | {"controller__name": "fixed", "objective__name": "nll_then_killed"}
    killed = config("killed-2", resumed, **two, checkpoint__every=1)
    save_config(config("whole-2", resumed, **two), folder / "2" / "whole.yaml")
    save_config(killed, folder / "2" / "z_killed.yaml")
    save_config(killed, folder / "again" / "killed.yaml")
    on_ranks(folder / "4", 4)
    # in the first micro-batch of step 2
    assert -signal.SIGKILL in on_ranks(folder / "2", 2, micro_batches(killed)[0] + 1)
    on_ranks(folder / "again", 2)
    return folder


@pytest.mark.parametrize("run", ["packed-2", "packed-4", "windows-2", "padded-2"])
def test_ranks_that_share_packs_take_the_step_of_one(runs, run):
    both = (run, f"{run[:-2]}-1")
    ours, theirs = (metrics_of(read_config(runs / name / "config.yaml")) for name in both)
    assert len(ours) == 2 and ours[0].keys() == theirs[0].keys()
    for row, alike in zip(ours, theirs, strict=True):
        assert row["grad_norm"] > 0.01 and row["tokens"] > 0
        for key in row:
            assert row[key] == pytest.approx(alike[key], rel=1e-6), key
    evals = [(runs / name / "eval.jsonl").read_text().splitlines() for name in both]
    held_out, of_one = (json.loads(lines[-1]) for lines in evals)
    for key in held_out:
        assert held_out[key] == pytest.approx(of_one[key], rel=1e-6), key
    state, alike = (saved_state(runs / name / "checkpoints" / "step_00000002") for name in both)
    assert state.keys() == alike.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, alike[key], rtol=1e-6, atol=1e-6, msg=key)


def test_killed_and_resumed_it_is_the_same_run_to_the_bit(runs):
    killed, whole = (
        saved_state(runs / name / "checkpoints" / "step_00000002")
        for name in ("killed-2", "whole-2")
    )
    assert killed.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in killed.items())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model__attention": "eager", "data__packing": False}, "model.attention=eager is not"),
        ({"objective__name": "talr", "objective__params": {"batch": 1}}, "a part of them"),
        ({}, "train.context_parallel=3 does not divide the 1 ranks"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(tmp_path, tiny_model, setting, message):
    with pytest.raises(ConfigError, match=message):
        train(small_config(tmp_path, tiny_model(), train__context_parallel=3, **setting))
    assert not (tmp_path / "run").exists()
