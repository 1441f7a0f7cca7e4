"""TRL's SFTTrainer with the adaptive objective learns what this package's loop learns."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", minversion="1.16")

import torch
import torch.distributed as dist
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.distributed import DistributedConfig
from trl import SFTConfig, SFTTrainer

from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.integrations.trl import AdaptiveSFTTrainer, refuse_sharded
from tests.distributed.two_ranks import on_two_ranks
from tests.integrations.parity import (
    EXAMPLES,
    STEPS,
    arguments,
    assert_same_steps,
    batches_of,
    our_config,
    our_steps,
)


def sft_config(folder: Path, **settings: Any) -> SFTConfig:
    own = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return SFTConfig(**arguments(folder, **own | settings))


@pytest.fixture(scope="module")
def same(tmp_path_factory, tiny_model) -> tuple[Path, Path, Dataset, list[dict[str, Any]]]:
    """A folder, the model, the batches, and the steps of this package's loop under auto."""
    folder, model = tmp_path_factory.mktemp("same"), tiny_model()
    config = our_config(folder, model, controller__name="auto")
    return folder, model, batches_of(config), our_steps(config)


SPLITS = {
    "padded": {},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": EXAMPLES},
    "packed": {"padding_free": True, "dataset_kwargs": None},
    "checkpointed": {"gradient_checkpointing": True},
    "not fused optimizer": {"optim": "adamw_torch"},
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_batches_give_the_same_steps(same, tmp_path, split):
    _, model, batches, ours = same
    trainer = AdaptiveSFTTrainer(
        str(model), sft_config(tmp_path, **SPLITS[split]), train_dataset=batches
    )
    trainer.train()
    assert_same_steps(trainer.state.log_history, ours)
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.args.learning_rate


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_the_learning_rate_is_scaled_as_in_this_loop(tmp_path, tiny_model, optim):
    config = our_config(tmp_path, tiny_model(), controller__name="short_steps")
    ours, batches = our_steps(config), batches_of(config)
    assert max(line["lr_scale"] for line in ours[1:]) < 0.1, "which nobody could overlook"
    trainer = AdaptiveSFTTrainer(
        str(tiny_model()),
        sft_config(tmp_path / "trl", optim=optim),
        train_dataset=batches,
        objective="short_steps",
    )
    trainer.train()
    assert_same_steps(trainer.state.log_history, ours)


def test_a_schedule_and_a_function_of_log_p_are_objectives_too(tmp_path, tiny_model):
    config = our_config(tmp_path, tiny_model(), controller__name="linear", objective__name="alpha")
    ours, batches = our_steps(config), batches_of(config)
    linear = AdaptiveSFTTrainer(
        str(tiny_model()), sft_config(tmp_path / "a"), train_dataset=batches, objective="linear"
    )
    linear.train()
    assert_same_steps(linear.state.log_history, ours)

    losses = []
    for own in ("neg_p", lambda logp: -logp.exp()):
        trainer = AdaptiveSFTTrainer(
            str(tiny_model()), sft_config(tmp_path / "b"), train_dataset=batches, objective=own
        )
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def train_on_ranks(how: str, model: str, data: str, out: str) -> int:
    config = sft_config(Path(out), per_device_train_batch_size=EXAMPLES // 2, ddp_backend="gloo")
    loaded: Any = model
    if how == "FSDP2":
        sharding = DistributedConfig(fsdp_size=2)
        loaded = AutoModelForCausalLM.from_pretrained(
            model, distributed_config=sharding, dtype=torch.float32
        )
    trainer = AdaptiveSFTTrainer(loaded, config, train_dataset=Dataset.load_from_disk(data))
    trainer.train()
    assert dist.get_world_size() == 2
    assert isinstance(trainer.model_wrapped, FSDPModule if how == "FSDP2" else DDP)
    if dist.get_rank() == 0:
        (Path(out) / "log.json").write_text(json.dumps(trainer.state.log_history))
    return 0


@pytest.mark.parametrize("how", ["DDP", "FSDP2"])
def test_two_ranks_give_the_same_steps(same, tmp_path, how):
    _, model, batches, ours = same
    batches.save_to_disk(tmp_path / "data")
    arguments = (how, str(model), str(tmp_path / "data"), str(tmp_path / "out"))
    codes, printed = on_two_ranks(train_on_ranks, *arguments, log=tmp_path / "log")
    assert codes == [0, 0], printed
    assert_same_steps(json.loads((tmp_path / "out" / "log.json").read_text()), ours)


def test_nll_through_an_adapter_is_what_trl_learns_by_itself(same, tmp_path):
    _, model, batches, _ = same
    logs = []
    for kind, own in ((SFTTrainer, {}), (AdaptiveSFTTrainer, {"objective": "nll"})):
        torch.manual_seed(0)
        trainer = kind(
            str(model),
            sft_config(tmp_path),
            train_dataset=batches,
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
            **own,
        )
        trainer.train()
        logs.append([line for line in trainer.state.log_history if "loss" in line])
    for plain, adaptive in zip(*logs, strict=True):
        names = ("loss", "grad_norm", "entropy", "mean_token_accuracy")
        assert [adaptive[name] for name in names] == pytest.approx([plain[name] for name in names])
        assert adaptive["nll"] == pytest.approx(plain["loss"])


def test_an_adapter_takes_the_same_steps(tmp_path, tiny_model):
    """From the start that this package's loop drew."""
    adapters = {"model__lora__rank": 4, "model__lora__alpha": 8, "controller__name": "auto"}
    still = our_config(tmp_path, tiny_model(), name="start", train__lr=0.0, **adapters)
    our_steps(still)
    config = our_config(tmp_path, tiny_model(), **adapters)
    ours, batches = our_steps(config), batches_of(config)
    base = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, Path(still.run_dir) / "final", is_trainable=True)
    trainer = AdaptiveSFTTrainer(model, sft_config(tmp_path / "trl"), train_dataset=batches)
    trainer.train()
    assert ours[-1]["nll"] < ours[0]["nll"]
    assert_same_steps(trainer.state.log_history, ours)


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **given):
        control.should_training_stop = state.global_step == self.step


def test_a_resumed_run_continues_to_the_bit(same, tmp_path):
    _, model, batches, _ = same

    def trainer(**more: Any) -> AdaptiveSFTTrainer:
        config = sft_config(tmp_path, save_strategy="steps", save_steps=3, logging_steps=1)
        return AdaptiveSFTTrainer(str(model), config, train_dataset=batches, **more)

    whole = trainer()
    whole.train()
    trainer(callbacks=[StopAfter(3)]).train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    names = ("step", "loss", "nll", "alpha", "floor", "lr_scale", "grad_norm")
    lines = [
        [{name: line[name] for name in names} for line in run.state.log_history if "loss" in line]
        for run in (whole, resumed)
    ]
    assert lines[0] == lines[1]
    weights = [dict(run.model.named_parameters()) for run in (whole, resumed)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    plain = SFTTrainer(
        str(model),
        sft_config(tmp_path / "plain", save_strategy="steps", save_steps=3),
        train_dataset=batches,
    )
    plain.train()
    with pytest.raises(CheckpointError, match="saved by another trainer"):
        trainer().train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-3"))


class BreakOnce(TrainerCallback):
    """Ends a training by an error in its second step, and counts the optimizer's hooks."""

    broken, hooks = False, 0

    def on_step_end(self, args, state, control, optimizer, **given):
        self.hooks = len(optimizer.optimizer._optimizer_step_pre_hooks)
        if state.global_step == 2 and not self.broken:
            self.broken = True
            raise KeyboardInterrupt


def test_a_training_that_was_interrupted_can_be_begun_again(same, tmp_path):
    """Of the learning rate that was scaled before nothing is left."""
    _, model, batches, _ = same
    watching = BreakOnce()
    trainer = AdaptiveSFTTrainer(
        str(model), sft_config(tmp_path), train_dataset=batches, callbacks=[watching]
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert watching.hooks == 1 and trainer.adaptive.objective.steps_done == STEPS
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks


def test_evaluation_shows_the_nll_and_moves_nothing(same, tmp_path):
    _, model, batches, ours = same
    config = sft_config(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer = AdaptiveSFTTrainer(
        str(model), config, train_dataset=batches, eval_dataset=batches.select(range(EXAMPLES))
    )
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(ours[0]["nll"], rel=0.05)  # mean over batches
    trainer.train()
    assert_same_steps(trainer.state.log_history, ours)


@pytest.mark.parametrize(
    ("named", "config", "said"),
    [
        ({"objective": "autoo"}, {}, "did you mean auto"),
        ({"objective": "nll", "controller": "auto"}, {}, "does not read"),
        ({}, {"loss_type": "dft"}, 'objective="dft"'),
        ({}, {"label_smoothing_factor": 0.1}, "leave it out"),
        ({"compute_loss_func": lambda *_: None}, {}, "as objective="),
        ({}, {"restore_callback_states_from_checkpoint": True}, "leave it out"),
    ],
)
def test_what_cannot_be_is_refused_before_training(same, tmp_path, named, config, said):
    _, model, batches, _ = same
    with pytest.raises(ConfigError, match=said):
        AdaptiveSFTTrainer(
            str(model), sft_config(tmp_path, **config), train_dataset=batches, **named
        )


def head_alone(model: str) -> int:
    dist.init_process_group("gloo")
    loaded = AutoModelForCausalLM.from_pretrained(model)
    head = loaded.get_output_embeddings()
    fully_shard(head)
    with pytest.raises(ConfigError, match="this rank's tokens alone"):
        refuse_sharded(head)
    with torch.no_grad():  # in evaluation there is no gradient to lose
        refuse_sharded(head)
    head.weight.requires_grad_(False)
    refuse_sharded(head)
    dist.destroy_process_group()
    return 0


def test_a_head_that_is_a_unit_of_its_own_is_refused(tiny_model, tmp_path):
    model = str(tiny_model(tied=False))
    codes, printed = on_two_ranks(head_alone, model, log=tmp_path / "log")
    assert codes == [0, 0], printed
