"""transformers' Trainer with an adaptive objective.

    AdaptiveTrainer(model, args, train_dataset=…, objective="auto")

is the Trainer with `compute_loss_func` and a callback; a Trainer of your own takes both:

    adaptive = ObjectiveCallback("auto")
    Trainer(…, compute_loss_func=LossOfLogits(adaptive), callbacks=[adaptive])
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Trainer

from adaptsft.errors import require
from adaptsft.integrations.callback import ObjectiveCallback
from adaptsft.objectives.loss import next_tokens

if TYPE_CHECKING:
    Base = Trainer
else:
    Base = object


class AdaptiveTrainerMixin(Base):
    """A trainer whose objective is `self.adaptive.objective`; its logs show what that is doing."""

    def __init__(
        self,
        *arguments: Any,
        objective: Any = "auto",
        controller: Any = None,
        exempt: Sequence[int] = (),
        **named: Any,
    ):
        """objective, controller and exempt are those of AdaptiveObjective; the rest is the
        trainer's. Raises ConfigError for what cannot be."""
        require(
            named.get("compute_loss_func") is None,
            "compute_loss_func replaces the loss: leave it out, or give the function of log p as "
            "objective=",
        )
        self.adaptive = ObjectiveCallback(objective, controller=controller, exempt=exempt)
        super().__init__(*arguments, **named)
        refuse(self)
        self.add_callback(self.adaptive)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.adaptive.objective is not None:  # of training
            logs.update(self.adaptive.metrics())
        super().log(logs, start_time)


class AdaptiveTrainer(AdaptiveTrainerMixin, Trainer):
    """transformers' Trainer. The model's logits are held whole, as always there."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.compute_loss_func = LossOfLogits(self.adaptive)


class LossOfLogits:
    """`compute_loss_func` of a Trainer. In training the objective, whose steps `adaptive` takes; in
    evaluation the mean NLL."""

    def __init__(self, adaptive: ObjectiveCallback):
        self.adaptive = adaptive

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """outputs.logits [B, L, V] and labels int64 [B, L], not shifted."""
        targets = next_tokens(labels)
        mask = targets != -100
        row, _ = mask.nonzero(as_tuple=True)
        logits = outputs.logits[mask].float()
        log_p = logits.log_softmax(-1)
        logps = log_p.gather(-1, targets[mask][:, None]).squeeze(-1)
        if not torch.is_grad_enabled():
            return -logps.sum() / (len(logps) if num_items_in_batch is None else num_items_in_batch)
        with torch.no_grad():
            p = log_p.exp()
            known = {
                "entropy": -(p * log_p).sum(-1),
                "collision": p.square().sum(-1),
                "top1": logps >= log_p.amax(-1),
            }
        assert self.adaptive.objective is not None
        loss, _ = self.adaptive.objective.loss_from_logps(
            logps,
            targets=targets[mask],
            sequence=row,
            num_tokens=num_items_in_batch,
            **known,
        )
        return loss


def refuse(trainer: Trainer) -> None:
    """Raise ConfigError for arguments with which the objective would not be what is trained."""
    args: Any = trainer.args
    deepspeed = trainer.is_deepspeed_enabled
    require(
        not deepspeed,
        "DeepSpeed takes the optimizer step where the learning rate cannot be scaled: use DDP or "
        "FSDP",
    )
    require(
        args.label_smoothing_factor == 0,
        f"label_smoothing_factor={args.label_smoothing_factor} replaces the loss by another: leave "
        "it out",
    )
    require(
        not getattr(args, "restore_callback_states_from_checkpoint", False),
        "restore_callback_states_from_checkpoint=True would put another callback in the place of "
        "the objective's, which restores its own state: leave it out",
    )
    parallel = trainer.accelerator.parallelism_config
    for name in ("tp", "cp", "sp"):
        size = getattr(parallel, f"{name}_size", 1) or 1
        require(
            size == 1,
            f"{name}_size={size}: the statistics of the objective are summed over ranks that see "
            "different sequences; use data parallelism (DDP, FSDP)",
        )
