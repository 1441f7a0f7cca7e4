"""Stopped at any step and resumed, a run is bitwise the run that was never stopped. Real processes,
really killed."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adaptsft.distributed import checkpoint
from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.train import train
from tests.model.random_models import write_random_model
from tests.model_types.variants import NEEDS, config_of
from tests.runs import (
    PROCESSES,
    _run,
    metrics_of,
    run_in_process,
    saved_state,
    small_config,
)

KILLED = -signal.SIGKILL


def weights(config) -> dict[str, torch.Tensor]:
    return load_file(Path(config.run_dir) / "final" / "model.safetensors")


def assert_same_run(config, reference) -> None:
    assert metrics_of(config) == metrics_of(reference)
    ours, theirs = weights(config), weights(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def settings(folder, tiny_model) -> dict:
    # talr reads statistics of the previous step: a lost one would show in the loss; dropout would
    # show a lost seed
    model = tiny_model("qwen2", tied=True)
    dropout = folder / "dropout"
    shutil.copytree(model, dropout)
    values = json.loads((dropout / "config.json").read_text())
    (dropout / "config.json").write_text(json.dumps(values | {"attention_dropout": 0.1}))
    return {"folder": folder, "model": dropout, "checkpoint__every": 1}


@pytest.fixture(scope="module")
def reference(settings):
    config = small_config(**settings, name="reference", objective__name="nll_then_killed")
    assert run_in_process(config) == 0
    return config


def micro_batches(config) -> list[int]:
    """Calls of the objective in every step."""
    from transformers import AutoTokenizer

    from adaptsft.data.sampler import BatchSampler
    from adaptsft.data.tokenized import open_data

    data, _ = open_data(
        config.data,
        AutoTokenizer.from_pretrained(config.model.path),
        config.seed,
        log=lambda line: None,
    )
    plan = BatchSampler(data, config, 1)
    return [len(plan.micro_batches(step, 0)) for step in range(6)]


def test_killed_in_every_step_and_resumed_each_time(settings, reference):
    config = small_config(**settings, name="killed", objective__name="nll_then_killed")
    calls = micro_batches(config)
    for done in range(1, 6):
        # each life takes one step and dies in the middle of the next
        assert run_in_process(config, kill_after_calls=calls[done - 1] + 2) == KILLED
        assert [
            c.name for c in checkpoint.complete_checkpoints(Path(config.run_dir) / "checkpoints")
        ][-1] == f"step_{done:08d}"
    assert run_in_process(config) == 0
    assert_same_run(config, reference)


@pytest.mark.nightly
def test_resumed_from_every_checkpoint_twice_in_a_row(settings, reference):
    for step in (1, 3, 4, 5):
        again = small_config(**settings, name=f"from{step}", objective__name="nll_then_killed")
        again.resume = str(Path(reference.run_dir) / "checkpoints" / f"step_{step:08d}")
        for _ in range(2 if step == 4 else 1):
            train(again)
            resumed, whole = metrics_of(again), metrics_of(reference)
            assert resumed == whole[step:]
            for name, tensor in weights(again).items():
                assert torch.equal(tensor, weights(reference)[name])


@pytest.mark.parametrize(
    "overrides",
    [
        {"objective__name": "talr", "data__packing": False},
        {"objective__name": "alpha", "controller__name": "cosine", "checkpoint__async_save": True},
        {
            "objective__name": "threshold",
            "objective__lower_quantile": 0.4,
            "objective__normalizer": "kept",
            "train__activation_checkpointing": "per_op",
        },
        {"objective__name": "neg_p", "model__freeze": ["embed_tokens"]},  # which is the head, too
    ],
    ids=["by statistics", "scheduled, in the background", "quantile threshold", "half frozen"],
)
def test_control_and_state_survive(settings, overrides):
    name = overrides["objective__name"]
    whole = small_config(**settings, name=f"{name}-whole", **overrides)
    train(whole)
    resumed = small_config(**settings, name=f"{name}-resumed", **overrides)
    resumed.resume = str(Path(whole.run_dir) / "checkpoints" / "step_00000003")
    train(resumed)
    assert metrics_of(resumed) == metrics_of(whole)[3:]
    for tensor, other in zip(weights(resumed).values(), weights(whole).values(), strict=True):
        assert torch.equal(tensor, other)
    held = saved_state(Path(resumed.resume))
    frozen = {"model/model.embed_tokens.weight", "model/lm_head.weight"} & held.keys()
    assert bool(frozen) == ("model__freeze" not in overrides), "they are read from model.path"


def test_asked_to_stop_it_saves_and_the_same_command_goes_on(settings, reference):
    changed = {"eval__every": 1, "data__validation_examples": 2, "checkpoint__every": 0}
    config = small_config(
        **settings | changed,
        name="stopped",
        objective__name="nll_then_killed",
        train__max_steps=400,
    )
    process = PROCESSES.Process(target=_run, args=(config, 0))
    process.start()
    metrics = Path(config.run_dir) / "metrics.jsonl"
    deadline = time.time() + 60
    while time.time() < deadline and not (
        metrics.is_file() and metrics.read_text().count("\n") >= 2
    ):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 0
    saved = checkpoint.complete_checkpoints(Path(config.run_dir) / "checkpoints")
    assert len(saved) == 1
    step = int(saved[0].name.removeprefix("step_"))
    assert 2 <= step < 400
    assert len(metrics_of(config)) == step, "metrics.jsonl ends with the step that was saved"
    evaluations = Path(config.run_dir) / "eval.jsonl"
    assert json.loads(evaluations.read_text().splitlines()[-1])["step"] == step
    assert evaluations.stat().st_mtime_ns > (saved[0] / checkpoint.MANIFEST).stat().st_mtime_ns, (
        "it saves first: who asks may not wait"
    )


def test_a_changed_configuration_is_refused_and_named(settings, reference):
    changed = small_config(
        **settings, name="reference", objective__name="nll_then_killed", train__lr=0.5, log__every=1
    )
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.01 -> 0\.5"):
        train(changed)
    with pytest.raises(ConfigError, match="resume=never"):
        train(
            small_config(
                **settings, name="reference", objective__name="nll_then_killed", resume="never"
            )
        )


def test_changed_data_are_refused(settings, tmp_path):
    config = small_config(tmp_path, settings["model"], train__max_steps=2)
    train(config)
    lines = (tmp_path / "data.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data.jsonl").write_text("".join([lines[0].replace("Add", "Sum"), *lines[1:]]))
    with pytest.raises(CheckpointError, match="data has changed"):
        train(config)


def test_a_checkpoint_of_another_run_is_refused(settings, reference):
    other = small_config(**settings, name="other-run", train__global_batch_size=4)
    other.resume = str(Path(reference.run_dir) / "checkpoints" / "step_00000003")
    with pytest.raises(CheckpointError, match=r"train\.global_batch_size: 5 -> 4"):
        train(other)
    assert not Path(other.run_dir).exists()


def test_going_back_to_an_earlier_checkpoint_leaves_none_of_the_old_branch(settings):
    config = small_config(**settings, name="branch", train__max_steps=6, checkpoint__keep_last=3)
    train(config)
    checkpoints = Path(config.run_dir) / "checkpoints"
    config.resume = str(checkpoints / "step_00000004")
    config.checkpoint.every = 0
    seen = []
    before = checkpoint.Checkpointer.save

    def save(self, *arguments, **named):
        seen.append([path.name for path in checkpoint.complete_checkpoints(checkpoints)])
        before(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpointer, "save", save)
        train(config)
    assert seen == [["step_00000004"]], (
        "5 and 6 of the first life are gone before anything of the second is saved"
    )
    assert [row["step"] for row in metrics_of(config)] == list(range(1, 7))


def test_a_background_save_is_complete_without_waiting_for_the_next(settings):
    config = small_config(
        **settings | {"checkpoint__every": 20},
        name="background",
        train__max_steps=300,
        checkpoint__async_save=True,
    )
    process = PROCESSES.Process(target=_run, args=(config, 0))
    process.start()
    checkpoints, deadline, complete = Path(config.run_dir) / "checkpoints", time.time() + 60, []
    while time.time() < deadline and not complete:
        complete = checkpoint.complete_checkpoints(checkpoints)
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    steps = len(metrics_of(config))
    assert [path.name for path in complete] == ["step_00000020"]
    assert steps < 40, f"complete before the save of step 40 began (metrics reach step {steps})"
    checkpoint.verify(complete[0])


def test_damage_is_noticed_and_named_and_an_older_checkpoint_works(settings, reference, folder):
    source = Path(reference.run_dir) / "checkpoints" / "step_00000004"
    for path in sorted(source.iterdir()):
        for harm in ("flip", "truncate", "delete"):
            broken = folder / "harm" / "step_00000004"
            shutil.rmtree(broken.parent, ignore_errors=True)
            shutil.copytree(source, broken)
            target = broken / path.name
            content = bytearray(target.read_bytes())
            if harm == "flip":
                content[len(content) // 2] ^= 0x10
                target.write_bytes(content)
            elif harm == "truncate":
                target.write_bytes(content[:-1])
            else:
                target.unlink()
            with pytest.raises(CheckpointError) as caught:
                checkpoint.verify(broken)
            assert path.name in str(caught.value) or path.name == checkpoint.MANIFEST
            assert str(broken) in str(caught.value)


def test_only_the_newest_are_kept_and_leftovers_of_a_crash_are_ignored(settings):
    config = small_config(**settings, name="pruned", checkpoint__keep_last=2)
    checkpoints = Path(config.run_dir) / "checkpoints"
    for step in (98, 99):
        (checkpoints / f"step_000000{step}.tmp").mkdir(parents=True)
    # killed between the manifest and the rename
    (checkpoints / "step_00000099.tmp" / checkpoint.MANIFEST).write_text("{}")
    train(config)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000005", "step_00000006"]


def test_a_deletion_cut_short_leaves_nothing_that_looks_complete(settings, reference, monkeypatch):
    """Going back to step 4 deletes 5 and 6: killed in the middle of it, the next start must not use
    what is left of them."""
    same = settings | {"name": "cut_short", "objective__name": "nll_then_killed"}
    run = Path(small_config(**same).run_dir)
    shutil.copytree(reference.run_dir, run)

    def killed(path: Path) -> None:
        raise OSError("killed")

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(CheckpointError, match="killed"):
        train(small_config(**same, resume=run / "checkpoints" / "step_00000004"))
    assert "step_00000005" not in [
        path.name for path in checkpoint.complete_checkpoints(run / "checkpoints")
    ]


def test_parameters_without_a_gradient_have_no_moments_and_are_resumed(tmp_path):
    """What chooses the tokens of DeepSeek-V3.2's sparse attention is never moved by the loss."""
    write_random_model(tmp_path / "model", config_of("deepseek_v32", NEEDS["deepseek_v32"]))
    eager = {"model__attention": "eager", "data__packing": False, "train__max_steps": 2}
    eager |= {"checkpoint__every": 1}
    config = small_config(tmp_path, tmp_path / "model", **eager)
    train(config)
    checkpoints, whole = Path(config.run_dir) / "checkpoints", weights(config)
    saved = saved_state(checkpoints / "step_00000002")
    moved = {name.split("/")[2] for name in saved if name.startswith("optimizer/state/")}
    assert any("indexer" in name and name not in moved for name in whole)
    shutil.rmtree(checkpoints / "step_00000002")
    shutil.rmtree(Path(config.run_dir) / "final")
    train(config)
    resumed, again = weights(config), saved_state(checkpoints / "step_00000002")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert saved.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items())
