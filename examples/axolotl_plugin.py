"""axolotl 0.19 with the adaptive objective, as a plugin. In its YAML:

    plugins: [axolotl_plugin.AdaptivePlugin]
    adaptive_objective: auto  # or another name of docs/objectives.md or docs/controllers.md

PYTHONPATH=examples axolotl train config.yaml

axolotl's trainer for SFT is one of transformers, not of TRL, and axolotl pins TRL 1.9: hence
adaptsft.integrations.trainer, which holds the logits whole.
"""

from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from adaptsft.errors import require
from adaptsft.integrations.trainer import AdaptiveTrainerMixin, LossOfLogits


class AdaptiveArgs(BaseModel):
    adaptive_objective: str = "auto"


class AdaptiveAxolotlTrainer(AdaptiveTrainerMixin, AxolotlTrainer):
    """Its callback moves the objective after every optimizer step, scales the learning rate, and
    saves its state with the checkpoints."""

    def __init__(self, *arguments, **named):
        require(named.get("compute_loss_func") is None, "use_eaft replaces the loss: leave it out")
        super().__init__(*arguments, **named)
        self.compute_loss_func = LossOfLogits(self.adaptive)


class AdaptivePlugin(BasePlugin):
    def get_input_args(self):
        return "axolotl_plugin.AdaptiveArgs"

    def get_trainer_cls(self, cfg):
        class Trainer(AdaptiveAxolotlTrainer):
            def __init__(self, *arguments, **named):
                super().__init__(*arguments, objective=cfg.adaptive_objective, **named)

        return Trainer
