"""TRL's SFTTrainer with an adaptive objective (TRL >= 1.16).

    from adaptsft.integrations.trl import AdaptiveSFTTrainer

    AdaptiveSFTTrainer(model, args, train_dataset=…, objective="auto").train()

TRL's fused head computes log p of the targets and what an objective reads besides; its loss, its
division by the tokens of the step, its data and its metrics are TRL's own. In evaluation the loss
is the NLL.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from trl import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from adaptsft.errors import ConfigError, require
from adaptsft.integrations.trainer import AdaptiveTrainerMixin

# of TRL's head; log_sum_sq_probs is log sum_i p_i^2
OUTPUTS = ("log_probs", "entropy", "is_top1", "log_sum_sq_probs")


class AdaptiveSFTTrainer(AdaptiveTrainerMixin, SFTTrainer):
    """SFTTrainer that learns by an AdaptiveObjective, `self.adaptive.objective`."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        args: Any = self.args
        require(
            args.loss_type == "nll",
            f"loss_type={args.loss_type} is an objective of TRL's own: leave it out; "
            'objective="dft" is the same one here',
        )
        model: Any = self.model
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        add_fused_lm_head(base, outputs=OUTPUTS)
        head = base.get_output_embeddings()
        base.base_model.register_forward_hook(lambda *_: refuse_sharded(head))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        def adapted(**given: Any) -> Any:
            outputs = model(**given)
            if given.get("fused_lm_head"):
                outputs.log_probs = -self._losses(outputs, inputs)  # of which TRL takes the sum
            return outputs

        own: Any = self.model
        used: Any = adapted if own.training else model
        return super().compute_loss(used, inputs, return_outputs, num_items_in_batch)

    def _losses(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        """The loss of every target, [B, L - 1], 0 where there is none."""
        objective, sequence = self.adaptive.objective, None
        assert objective is not None
        if "position_ids" in inputs:  # several documents in a row
            starts = inputs["position_ids"] == 0
            sequence = starts.flatten().cumsum(0).view(starts.shape)[:, :-1]
        losses, _ = objective.loss_from_logps(
            outputs.log_probs,
            mask=outputs.label_mask,
            entropy=outputs.entropy,
            collision=outputs.log_sum_sq_probs.exp(),
            top1=outputs.is_top1,
            targets=inputs["labels"][:, 1:],
            sequence=sequence,
            reduction="none",
        )
        return losses


def refuse_sharded(head: nn.Module) -> None:
    """Raise ConfigError where TRL's head would read a sharded weight and train it: the gradient of
    other ranks' tokens would be lost (docs/api.md)."""
    weight = head.weight
    if isinstance(weight, DTensor) and weight.requires_grad and torch.is_grad_enabled():
        raise ConfigError(
            "the head's weight is sharded where TRL reads it (FSDP2 made the head a unit of its "
            "own, as with modules_to_save=[lm_head]), and its gradient would be that of this "
            "rank's tokens alone: leave the head frozen, or use DDP"
        )
