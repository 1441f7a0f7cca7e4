"""ms-swift 4.6 with the adaptive objective, as a plugin.

swift sft --external_plugins examples/ms_swift_loss.py --loss_type adaptive --callbacks adaptive …

The callback moves the objective after every optimizer step, scales the learning rate, and lies in
the checkpoints; the loss is its. Resume with --resume_from_checkpoint.
"""

from swift.callbacks import callbacks_map
from swift.loss import BaseLoss, loss_map

from adaptsft.errors import require
from adaptsft.integrations.callback import ObjectiveCallback
from adaptsft.integrations.trainer import LossOfLogits, refuse


class AdaptiveCallback(ObjectiveCallback):
    def __init__(self, args, trainer):
        super().__init__("auto")
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **given):
        refuse(self.trainer)
        super().on_train_begin(args, state, control, **given)

    def on_log(self, args, state, control, logs=None, **given):
        if "loss" in logs:  # of training
            state.log_history[-1] |= self.metrics()


class AdaptiveLoss(BaseLoss):
    def __call__(self, outputs, labels, *, num_items_in_batch=None, loss_scale=None, **given):
        require(loss_scale is None, "loss_scale weights tokens, which the objective does: leave it")
        handler = self.trainer.callback_handler
        (adaptive,) = (one for one in handler.callbacks if isinstance(one, AdaptiveCallback))
        return LossOfLogits(adaptive)(outputs, labels, num_items_in_batch)


loss_map["adaptive"] = AdaptiveLoss
callbacks_map["adaptive"] = AdaptiveCallback
