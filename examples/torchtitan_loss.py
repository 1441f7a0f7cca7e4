"""torchtitan 0.3 with the adaptive objective, from a configuration of its own.

PYTHONPATH=examples torchrun --nproc-per-node 8 -m torchtitan.train \
    --module torchtitan_loss --config qwen3_8b_math

The loss sees the logits of a chunk; the trainer moves the objective after every optimizer step.
For data parallelism (FSDP, HSDP). A validator's loss is the NLL. Verified: the loss, on a CPU. Not
verified: the trainer, whose attention needs a GPU; written against the source of torchtitan 0.3.0.
"""

from dataclasses import dataclass, fields

import torch
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.models.qwen3.config_registry import sft_qwen3_8b_math
from torchtitan.trainer import Trainer

from adaptsft import AdaptiveObjective


class AdaptiveLoss(CrossEntropyLoss):
    @dataclass(kw_only=True, slots=True)
    class Config(CrossEntropyLoss.Config):
        pass

    def __call__(self, pred, labels, global_valid_tokens=None, **given):
        if not torch.is_grad_enabled():  # a validator's
            return super().__call__(pred, labels, global_valid_tokens, **given)
        mask = labels != IGNORE_INDEX
        log_p = pred[mask].float().log_softmax(-1)
        logps = log_p.gather(-1, labels[mask][:, None]).squeeze(-1)
        collision = log_p.detach().exp().square().sum(-1)
        return self.objective.loss_from_logps(
            logps, collision=collision, num_tokens=global_valid_tokens
        )[0], {}  # torchtitan sums gradients over ranks


class AdaptiveTrainer(Trainer):
    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        objective: str = "auto"

    def __init__(self, config):
        super().__init__(config)
        dims, steps = self.parallel_dims, config.training.steps
        if dims.tp_enabled or dims.pp_enabled or not config.training.disable_cuda_graphs:
            raise ValueError("needs data parallelism alone, and training.disable_cuda_graphs")
        (optimizer,) = self.optimizers
        self.objective = AdaptiveObjective(config.objective, total_steps=steps, optimizer=optimizer)
        self.loss_fn.loss_fn.objective = self.objective

    def train_step(self, data_iterator):
        super().train_step(data_iterator)
        self.objective.step()

    def state_dict(self):
        return super().state_dict() | {"objective": self.objective.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.objective.load_state_dict(state_dict["objective"])


def qwen3_8b_math():
    base = sft_qwen3_8b_math()
    base.loss = ChunkedLossWrapper.Config(loss_fn=AdaptiveLoss.Config())
    base.training.disable_cuda_graphs = True  # the loss waits for the host
    return AdaptiveTrainer.Config(**{f.name: getattr(base, f.name) for f in fields(base)})
