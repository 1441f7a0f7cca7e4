"""transformers' Trainer with the adaptive objective learns what this package's loop learns."""

from typing import Any

import pytest

pytest.importorskip("accelerate")

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from adaptsft.errors import ConfigError
from adaptsft.integrations.callback import ObjectiveCallback
from adaptsft.integrations.trainer import AdaptiveTrainer, LossOfLogits
from tests.integrations.parity import (
    EXAMPLES,
    arguments,
    assert_same_steps,
    batches_of,
    our_config,
    our_steps,
)


@pytest.fixture(scope="module")
def same(tmp_path_factory, tiny_model):
    folder, model = tmp_path_factory.mktemp("same"), tiny_model()
    config = our_config(folder, model, controller__name="auto")
    return model, batches_of(config), our_steps(config)


def needed(model, batches) -> dict[str, Any]:
    return {
        "model": AutoModelForCausalLM.from_pretrained(model),
        "train_dataset": batches,
        "data_collator": DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(model)),
    }


@pytest.mark.parametrize("accumulated", [False, True])
def test_the_same_batches_give_the_same_steps(same, tmp_path, accumulated):
    model, batches, ours = same
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": EXAMPLES}
    args = TrainingArguments(**arguments(tmp_path, **split if accumulated else {}))
    trainer = AdaptiveTrainer(
        args=args, eval_dataset=batches.select(range(EXAMPLES)), **needed(model, batches)
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(ours[0]["nll"], rel=1e-5)
    trainer.train()
    assert_same_steps(trainer.state.log_history, ours)


def test_a_trainer_of_ones_own_takes_the_loss_and_the_callback(same, tmp_path):
    model, batches, ours = same
    adaptive = ObjectiveCallback("auto")
    trainer = Trainer(
        args=TrainingArguments(**arguments(tmp_path, save_strategy="steps", save_steps=3)),
        compute_loss_func=LossOfLogits(adaptive),
        callbacks=[adaptive],
        **needed(model, batches),
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses == pytest.approx([line["loss"] for line in ours], rel=1e-5)
    assert adaptive.metrics()["alpha"] == pytest.approx(ours[-1]["alpha"])

    again = ObjectiveCallback("auto")
    resumed = Trainer(
        args=TrainingArguments(**arguments(tmp_path, save_strategy="steps", save_steps=3)),
        compute_loss_func=LossOfLogits(again),
        callbacks=[again],
        **needed(model, batches),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, value in adaptive.objective.tensors().items():
        assert torch.equal(value, again.objective.tensors()[name]), name


def test_a_loss_function_beside_the_objective_is_refused(same, tmp_path):
    model, batches, _ = same
    with pytest.raises(ConfigError, match="as objective="):
        AdaptiveTrainer(
            args=TrainingArguments(**arguments(tmp_path)),
            compute_loss_func=lambda *_: None,
            **needed(model, batches),
        )
