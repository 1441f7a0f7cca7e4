"""TRL's SFTTrainer with the adaptive objective learns what this package's loop learns."""

import pytest

pytest.importorskip("trl", minversion="1.16")

from trl import SFTConfig

from adaptsft.integrations.trl import AdaptiveSFTTrainer
from tests.integrations.parity import (
    arguments,
    assert_same_steps,
    batches_of,
    our_config,
    our_steps,
)


def sft_config(folder, **settings):
    own = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return SFTConfig(**arguments(folder, **own | settings))


@pytest.mark.parametrize("name", ["auto", "linear"])
def test_the_same_batches_give_the_same_steps(tmp_path, tiny_model, name):
    model = tiny_model()
    objective = {"objective__name": "alpha"} if name == "linear" else {}
    config = our_config(tmp_path, model, controller__name=name, **objective)
    ours, batches = our_steps(config), batches_of(config)
    trainer = AdaptiveSFTTrainer(
        str(model), sft_config(tmp_path / "trl"), train_dataset=batches, objective=name
    )
    trainer.train()
    assert_same_steps(trainer.state.log_history, ours)
